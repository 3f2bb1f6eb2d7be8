// Rows of numbers to lanes of vectors and back; queries and keys to steps: the logits of a block of rows in 1/128 of a power of two, as 16-bit numbers.
//
// The lanes of a vector are query rows; keys are broadcast. So nothing is summed across lanes, and no width
// wants filling up. Where Cauchy and Schwarz keep the exponents of a block of rows below kFreeRange the steps
// are taken as they are, else the rows' maxima are sought first.

#pragma once

#include "attention.h"

namespace attention {
namespace {

constexpr int kRows = 32;    // queries of a block: two vectors, so that each broadcast is used twice
constexpr int kColumns = 14;  // of values at a time: 28 sums in registers
constexpr int kSteps = 128;  // between two powers of two: bfloat16 has seven bits of fraction
constexpr float kFreeRange = 60;      // of 126: leaves 2^60 for the size of values and the number of tokens
constexpr float kMaxRange = 1 << 24;  // beyond it float32 cannot tell neighbouring powers of two apart
constexpr float kToBits = 12582912;   // 1.5 * 2^23: a number added to it stands in the low bits of the sum
constexpr float kLog2E = 1.44269504f;

// Sixteen vectors of sixteen numbers, rows for columns: pairs, then fours, then the fours of all rows.
inline void turn(Vec (&m)[kLanes]) {
  __m512d t[kLanes];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_castps_pd(_mm512_unpacklo_ps(m[i], m[i + 1]));
    t[i + 1] = _mm512_castps_pd(_mm512_unpackhi_ps(m[i], m[i + 1]));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4)
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      m[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(t[i + j], t[i + 2 + j]));
      m[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(t[i + j], t[i + 2 + j]));
    }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const Vec even[2] = {_mm512_shuffle_f32x4(m[j], m[4 + j], 0x88),
                         _mm512_shuffle_f32x4(m[8 + j], m[12 + j], 0x88)};
    const Vec odd[2] = {_mm512_shuffle_f32x4(m[j], m[4 + j], 0xdd),
                        _mm512_shuffle_f32x4(m[8 + j], m[12 + j], 0xdd)};
    m[j] = _mm512_shuffle_f32x4(even[0], even[1], 0x88);
    m[4 + j] = _mm512_shuffle_f32x4(odd[0], odd[1], 0x88);
    m[8 + j] = _mm512_shuffle_f32x4(even[0], even[1], 0xdd);
    m[12 + j] = _mm512_shuffle_f32x4(odd[0], odd[1], 0xdd);
  }
}

// Rows of `width` numbers -> columns [width up to sixteen, 16]. Rows that are not there are as the last that
// is, which may lie before the first of these.
inline void turn_rows(const float* rows, int64_t stride, int64_t count, int64_t width, float* columns) {
  for (int64_t c = 0; c < width; c += kLanes, columns += kLanes * kLanes) {
    Vec m[kLanes];
#pragma GCC unroll 16
    for (int r = 0; r < kLanes; ++r)
      m[r] = load(rows + std::min<int64_t>(r, count - 1) * stride + c, lanes(width - c));
    turn(m);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) _mm512_store_ps(columns + i * kLanes, m[i]);
  }
}

// Columns [width, 16] that lie `apart`, times `factor` -> put(row, first column, mask, sixteen numbers) of
// `count` rows.
template <class Put>
inline void turn_columns(const float* columns, int64_t apart, Vec factor, int64_t count, int64_t width,
                         const Put& put) {
  for (int64_t c = 0; c < width; c += kLanes) {
    Vec m[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i)
      m[i] = c + i < width ? _mm512_mul_ps(_mm512_load_ps(columns + (c + i) * apart), factor)
                           : _mm512_setzero_ps();
    turn(m);
    const int64_t last = std::min(count, kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kLanes; ++r)
      if (r < last) put(r, c, lanes(width - c), m[r]);
  }
}

// Sums [width + 1, 16] that lie `apart`, the last those of the weights -> `count` rows of `bytes` or of
// `out`, from number `at` on. spoilt: 0, or NaN where there is no answer.
inline void put_rows(const Call& call, const float* sums, int64_t apart, Vec spoilt, int64_t count,
                     int64_t at) {
  const Vec share = _mm512_add_ps(_mm512_div_ps(splat(1), _mm512_load_ps(sums + call.width * apart)), spoilt);
  const int64_t stride = call.heads * call.width;
  if (call.bytes)
    turn_columns(sums, apart, share, count, call.width,
                 [to = ToBytes(call.step, call.zero), bytes = call.bytes + at, stride](
                     int64_t row, int64_t c, __mmask16 mask, Vec y) {
                   store(bytes + row * stride + c, mask, to.fast(y));
                 });
  else
    turn_columns(sums, apart, share, count, call.width,
                 [out = call.out + at, stride](int64_t row, int64_t c, __mmask16 mask, Vec y) {
                   store(out + row * stride + c, mask, y);
                 });
}

struct Queries {
  alignas(64) uint8_t lanes[kMaxWidth * 2 * kRows];  // [row_bytes / 4, kRows, 4]
  alignas(64) float factor[kRows];                   // from what `Kind::logit` gives to steps
  alignas(64) float offset[kRows];                   // added to them, kToBits in it
  alignas(64) float spoilt[kRows];                   // 0, or NaN where there is no answer
};

// Raw logits of kTile tokens from t on, for two vectors of rows.
template <class Kind>
inline void score(const Head& head, const Queries& queries, int64_t t, Vec (&x)[kTile][2]) {
  typename Kind::Sum sum[kTile][2];
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

// As integers, which are cheaper to compare: below a positive number's bits are all negative numbers' too.
inline Vec at_least(Vec x, __m512i floor) {
  return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(x), floor));
}

// Steps of kTile tokens from t on -> [kTile / 2, 2 vectors], two tokens in each lane, and those too far below
// the largest to count as Kind::kLeast.
template <class Kind>
inline void find_steps(const Head& head, const Queries& queries, int64_t t, __m512i* steps) {
  const __m512i even =
      _mm512_set_epi16(62, 30, 60, 28, 58, 26, 56, 24, 54, 22, 52, 20, 50, 18, 48, 16,  //
                       46, 14, 44, 12, 42, 10, 40, 8, 38, 6, 36, 4, 34, 2, 32, 0);
  const __m512i least = _mm512_castps_si512(splat(kToBits + Kind::kLeast));
  Vec x[kTile][2];
  score<Kind>(head, queries, t, x);
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const Vec factor = _mm512_load_ps(queries.factor + 16 * half);
    const Vec offset = _mm512_load_ps(queries.offset + 16 * half);
#pragma GCC unroll 8
    for (int i = 0; i < kTile; ++i) x[i][half] = at_least(_mm512_fmadd_ps(x[i][half], factor, offset), least);
#pragma GCC unroll 4
    for (int i = 0; i < kTile; i += 2)
      steps[i + half] = _mm512_permutex2var_epi16(_mm512_castps_si512(x[i][half]), even,
                                                  _mm512_castps_si512(x[i + 1][half]));
  }
}

// Where the logits may be large: the offset that makes a row's largest power 1/2 to 1.
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
    _mm512_store_ps(queries.offset + r, splat(kToBits + Kind::kUnit));
    _mm512_store_ps(queries.spoilt + r, _mm512_mask_mov_ps(splat(NAN), fits, _mm512_setzero_ps()));
    range = std::max(range, _mm512_mask_reduce_max_ps(fits, bound));
  }
  if (range > kFreeRange) lower_to_maximum<Kind>(head, queries);
}

// run(first, count) for all columns of values, as evenly as they fall into registers.
template <class Run>
inline void in_passes(int64_t columns, const Run& run) {
  int64_t passes = (columns + kColumns - 1) / kColumns;
  for (int64_t c = 0, width; c < columns; c += width, --passes)
    run(c, width = (columns - c + passes - 1) / passes);
}

}  // namespace
}  // namespace attention
