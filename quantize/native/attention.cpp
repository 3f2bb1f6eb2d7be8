// softmax(q k^T / sqrt(d)) v on bytes and bfloat16, for x86 with AVX512-VNNI, -BF16 and -VBMI.
//
// Dao et al. 2022 (FlashAttention): a block of tokens at a time, no [n, m] matrix. Zhang et al. 2024
// (SageAttention): int8 logits, of keys without their mean. The lanes of a vector are query rows; keys and
// values are broadcast. So nothing is summed across lanes, and no width wants filling up.
//
// Weights are bfloat16 with its whole exponent, which makes a running maximum needless: where Cauchy and
// Schwarz keep the exponents of a block of rows below kFreeRange its powers of two are taken as they are,
// else the rows' maxima are sought first. The sum of the weights is one more column of values, all ones.
// quantize/attention.py has the same arithmetic in plain torch.

#include "attention.h"
#include "attention_rows.h"

#ifdef FW_ATTENTION

namespace attention {
namespace {

constexpr int kRows = 32;     // queries of a block: two vectors, so that each broadcast is used twice
constexpr int kBlock = 128;   // tokens between two visits of the sums: their weights stay in L1
constexpr int kColumns = 14;  // of values at a time: 28 sums in registers
constexpr int kChunk = 4;     // blocks that a thread takes at a time
constexpr int kSteps = 128;   // between two powers of two: bfloat16 has seven bits of fraction
constexpr float kFreeRange = 60;      // of 126: leaves 2^60 for the size of values and the number of tokens
constexpr float kMaxRange = 1 << 24;  // beyond it float32 cannot tell neighbouring powers of two apart
constexpr float kOne = 127 * kSteps;  // the bits of 1 in bfloat16
constexpr float kToBits = 12582912;   // 1.5 * 2^23: a number added to it stands in the low bits of the sum
constexpr float kLog2E = 1.44269504f;

struct Queries {
  alignas(64) uint8_t lanes[kMaxWidth * 2 * kRows];  // [row_bytes / 4, kRows, 4]
  alignas(64) float factor[kRows];                   // from what `Kind::logit` gives to steps
  alignas(64) float offset[kRows];                   // from steps to bfloat16's bits
  alignas(64) float spoilt[kRows];                   // 0, or NaN where there is no answer
};

struct Fractions {  // bfloat16's fraction of 2^(i / kSteps)
  alignas(64) uint8_t bits[kSteps];
  Fractions() {
    for (int i = 0; i < kSteps; ++i) bits[i] = std::lrint((std::exp2(i / double(kSteps)) - 1) * kSteps);
  }
};
const Fractions kFractions;

// Raw logits of kTile tokens from t on, for two vectors of rows.
template <class Kind>
inline void score(const Head& head, const Queries& queries, int64_t t, Vec (&x)[kTile][2]) {
  __m512i sum[kTile][2];
#pragma GCC unroll 8
  for (int i = 0; i < kTile; ++i) sum[i][0] = sum[i][1] = Kind::start(head, t + i);
  const uint8_t* keys = head.key(t);
  int64_t g = 0;
  do {  // not `for`: the compiler would keep a copy of all sums for a row of no bytes
    const __m512i low = _mm512_load_si512(queries.lanes + g * kRows);
    const __m512i high = _mm512_load_si512(queries.lanes + g * kRows + 64);
#pragma GCC unroll 8
    for (int i = 0; i < kTile; ++i) {
      int32_t group;
      std::memcpy(&group, keys + g * kLanes + i * kGroupBytes, kGroupBytes);
      const __m512i key = _mm512_set1_epi32(group);
      sum[i][0] = Kind::dot(sum[i][0], low, key);
      sum[i][1] = Kind::dot(sum[i][1], high, key);
    }
    g += kGroupBytes;
  } while (g < head.row_bytes);
#pragma GCC unroll 8
  for (int i = 0; i < kTile; ++i) {
    x[i][0] = Kind::logit(sum[i][0], head, t + i);
    x[i][1] = Kind::logit(sum[i][1], head, t + i);
  }
}

// Pairs of powers of two: steps that stand in the low halves of a and b -> bfloat16, a's in the low half.
inline __m512i powers(Vec a, Vec b) {
  const __m512i even =
      _mm512_set_epi16(62, 30, 60, 28, 58, 26, 56, 24, 54, 22, 52, 20, 50, 18, 48, 16,  //
                       46, 14, 44, 12, 42, 10, 40, 8, 38, 6, 36, 4, 34, 2, 32, 0);
  const __m512i exponents = _mm512_set1_epi16(static_cast<int16_t>(0xff80));
  const __m512i steps = _mm512_permutex2var_epi16(_mm512_castps_si512(a), even, _mm512_castps_si512(b));
  const __m512i low = _mm512_load_si512(kFractions.bits), high = _mm512_load_si512(kFractions.bits + 64);
  const __m512i fractions = _mm512_maskz_permutex2var_epi8(0x5555555555555555, low, steps, high);
  return _mm512_ternarylogic_epi32(steps, exponents, fractions, 0xea);  // (steps & exponents) | fractions
}

// As integers, which are cheaper to compare: below a positive number's bits are all negative numbers' too.
inline Vec at_least(Vec x, __m512i floor) {
  return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(x), floor));
}

template <class Kind>
void weigh(const Head& head, const Queries& queries, int64_t first, int64_t count, __m512i* weights) {
  const __m512i floor = _mm512_castps_si512(splat(kToBits));
  for (int64_t t = 0; t < count; t += kTile) {
    Vec x[kTile][2];
    score<Kind>(head, queries, first + t, x);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const Vec factor = _mm512_load_ps(queries.factor + 16 * half);
      const Vec offset = _mm512_load_ps(queries.offset + 16 * half);
#pragma GCC unroll 8
      for (int i = 0; i < kTile; ++i)
        x[i][half] = at_least(_mm512_fmadd_ps(x[i][half], factor, offset), floor);
#pragma GCC unroll 4
      for (int i = 0; i < kTile; i += 2) weights[t + i + half] = powers(x[i][half], x[i + 1][half]);
    }
  }
}

// sums[kCount, 2 vectors] += the weights of `pairs` pairs of tokens times their values.
template <int kCount>
void add(const __m512i* weights, const uint16_t* values, int64_t columns, int64_t pairs, float* sums) {
  Vec sum[kCount][2];
#pragma GCC unroll 16
  for (int c = 0; c < kCount; ++c) {
    sum[c][0] = _mm512_load_ps(sums + c * kRows);
    sum[c][1] = _mm512_load_ps(sums + c * kRows + 16);
  }
  for (int64_t j = 0; j < pairs; ++j, values += 2 * columns) {
    const __m512bh low = (__m512bh)weights[2 * j], high = (__m512bh)weights[2 * j + 1];
#pragma GCC unroll 16
    for (int c = 0; c < kCount; ++c) {
      int32_t pair;
      std::memcpy(&pair, values + 2 * c, 4);
      const __m512bh value = (__m512bh)_mm512_set1_epi32(pair);
      sum[c][0] = _mm512_dpbf16_ps(sum[c][0], low, value);
      sum[c][1] = _mm512_dpbf16_ps(sum[c][1], high, value);
    }
  }
#pragma GCC unroll 16
  for (int c = 0; c < kCount; ++c) {
    _mm512_store_ps(sums + c * kRows, sum[c][0]);
    _mm512_store_ps(sums + c * kRows + 16, sum[c][1]);
  }
}

using Add = void (*)(const __m512i*, const uint16_t*, int64_t, int64_t, float*);
constexpr Add kAdd[kColumns + 1] = {nullptr, add<1>, add<2>,  add<3>,  add<4>,  add<5>,  add<6>, add<7>,
                                    add<8>,  add<9>, add<10>, add<11>, add<12>, add<13>, add<14>};

// Where the logits may be large: the offset that makes a row's largest weight 1/2 to 1.
template <class Kind>
void lower_to_maximum(const Head& head, Queries& queries) {
  const Vec factors[2] = {_mm512_load_ps(queries.factor), _mm512_load_ps(queries.factor + 16)};
  Vec top[2] = {splat(-INFINITY), splat(-INFINITY)};
  for (int64_t t = 0; t < head.tokens; t += kTile) {
    Vec x[kTile][2];
    score<Kind>(head, queries, t, x);
#pragma GCC unroll 8
    for (int i = 0; i < kTile; ++i) {
      top[0] = _mm512_max_ps(top[0], _mm512_mul_ps(x[i][0], factors[0]));
      top[1] = _mm512_max_ps(top[1], _mm512_mul_ps(x[i][1], factors[1]));
    }
  }
  alignas(64) float maximum[kRows];
  _mm512_store_ps(maximum, top[0]);
  _mm512_store_ps(maximum + 16, top[1]);
  for (int r = 0; r < kRows; ++r) queries.offset[r] -= kSteps * std::ceil(maximum[r] / kSteps);
}

template <class Kind>
void load_queries(const Call& call, const Head& head, const float* q, int64_t rows, Queries& queries) {
  alignas(64) float columns[kMaxWidth * kLanes];
  const float to_log2 = kLog2E / std::sqrt(static_cast<float>(call.width));
  float range = 0;
  for (int64_t r = 0; r < kRows; r += kLanes) {
    turn_rows(q + r * call.q_stride[2], call.q_stride[2], rows - r, call.width, columns);
    uint8_t* codes = queries.lanes + r * kGroupBytes;
    const Lanes made = Kind::encode(columns, call.width, Kind::kFlip, codes, kRows * kGroupBytes);
    const Vec bound = _mm512_mul_ps(_mm512_mul_ps(made.norm, splat(*head.norm)), splat(to_log2));
    const __mmask16 fits = _mm512_cmp_ps_mask(bound, splat(kMaxRange), _CMP_LT_OQ);
    _mm512_store_ps(queries.factor + r, _mm512_mul_ps(made.scale, splat(to_log2 * kSteps)));
    _mm512_store_ps(queries.offset + r, splat(kToBits + kOne));
    _mm512_store_ps(queries.spoilt + r, _mm512_mask_mov_ps(splat(NAN), fits, _mm512_setzero_ps()));
    range = std::max(range, _mm512_mask_reduce_max_ps(fits, bound));
  }
  if (range > kFreeRange) lower_to_maximum<Kind>(head, queries);
}

template <class Kind>
void attend_rows(const Call& call, const Head& head, const Queries& queries, int64_t rows, int64_t at) {
  alignas(64) float sums[(kMaxWidth + 1) * kRows];
  alignas(64) __m512i weights[kBlock];
  if (!call.bytes) fetch(call.out + at, call.heads * call.width, rows, call.width);
  std::memset(sums, 0, head.columns * kRows * sizeof(float));
  for (int64_t t = 0; t < head.tokens; t += kBlock) {
    const int64_t count = std::min<int64_t>(kBlock, head.tokens - t);
    weigh<Kind>(head, queries, t, count, weights);
    int64_t passes = (head.columns + kColumns - 1) / kColumns;
    for (int64_t c = 0; c < head.columns; --passes) {
      const int64_t width = (head.columns - c + passes - 1) / passes;
      kAdd[width](weights, head.values + (t / 2 * head.columns + c) * 2, head.columns, count / 2,
                  sums + c * kRows);
      c += width;
    }
  }
  for (int64_t r = 0; r < rows; r += kLanes, at += kLanes * call.heads * call.width)
    put_rows(call, sums + r, kRows, _mm512_load_ps(queries.spoilt + r), rows - r, at);
}

template <class Kind>
void attend_block(const Call& call, int64_t index, int64_t first) {
  const Head head(call, index);
  const float* q = row_of(call.q, call.q_stride, call.heads, index, first);
  const int64_t rows = std::min<int64_t>(kRows, call.queries - first);
  Queries queries;
  load_queries<Kind>(call, head, q, rows, queries);
  fetch(q + kRows * call.q_stride[2], call.q_stride[2], kRows, call.width);
  const int64_t row = (index / call.heads * call.queries + first) * call.heads + index % call.heads;
  attend_rows<Kind>(call, head, queries, rows, row * call.width);
}

}  // namespace
}  // namespace attention

extern "C" {

// The largest width of a head that `fw_attend` takes; 0 where the compiler knew of no such CPU.
void fw_attend_widest(int64_t* width) { *width = attention::kMaxWidth; }

void fw_attend(const attention::Call* call) {
  using namespace attention;
  const int64_t all = call->batch * call->heads, blocks = (call->queries + kRows - 1) / kRows;
#pragma omp parallel num_threads(call->threads)
  {
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < all; ++i) pack(*call, i);
#pragma omp for schedule(dynamic, kChunk)
    for (int64_t i = 0; i < all * blocks; ++i)
      call->precise ? attend_block<Bf16>(*call, i / blocks, i % blocks * kRows)
                    : attend_block<Int8>(*call, i / blocks, i % blocks * kRows);
  }
}

}  // extern "C"

#else

extern "C" void fw_attend_widest(int64_t* width) { *width = 0; }
extern "C" void fw_attend(const void*) {}

#endif
