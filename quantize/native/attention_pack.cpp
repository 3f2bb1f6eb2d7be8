// Keys to codes, values to bytes or pairs of bfloat16, once a head, before the attention kernel reads them.

#include "attention.h"

#ifdef FW_ATTENTION

#include "attention_steps.h"

namespace attention {
namespace {

constexpr int kAhead = 16;  // rows: what is asked for now is there when its turn comes

// mean[width]: of the keys over the tokens.
void mean_key(const Call& call, const float* k, float* mean) {
  const int64_t stride = call.k_stride[2];
  std::fill(mean, mean + call.width, 0.0f);
  for (int64_t t = 0; t < call.tokens; ++t) {
    fetch(k + (t + kAhead) * stride, 0, 1, call.width);
    for (int64_t c = 0; c < call.width; c += kLanes) {
      const __mmask16 mask = lanes(call.width - c);
      store(mean + c, mask, _mm512_add_ps(load(mean + c, mask), load(k + t * stride + c, mask)));
    }
  }
  for (int64_t c = 0; c < call.width; ++c) mean[c] /= static_cast<float>(call.tokens);
}

// Mean of the keys away, then codes. The tokens that fill up the last sixteen get the last one's key, so that
// no maximum rises; their values are zeros.
template <class Kind>
void pack_keys(const Call& call, const float* k, const Head& head) {
  const int64_t stride = call.k_stride[2];
  alignas(64) float columns[kMaxWidth * kLanes], mean[kMaxWidth];
  mean_key(call, k, mean);
  Vec longest = _mm512_setzero_ps(), spoilt = longest;
  for (int64_t t = 0; t < call.tokens; t += kLanes) {
    fetch(k + (t + kAhead) * stride, stride, kLanes, call.width);
    turn_rows(k + t * stride, stride, call.tokens - t, call.width, columns);
    for (int64_t c = 0; c < call.width; ++c) {
      const Vec column = _mm512_load_ps(columns + c * kLanes);
      _mm512_store_ps(columns + c * kLanes, _mm512_sub_ps(column, splat(mean[c])));
    }
    const Lanes made = Kind::encode(columns, call.width, 0, head.codes + t * head.row_bytes, kGroupApart);
    _mm512_storeu_ps(head.scale + t, made.scale);
    _mm512_storeu_si512(head.start + t, _mm512_mullo_epi32(made.sum, _mm512_set1_epi32(-128)));
    longest = _mm512_max_ps(longest, made.norm);
    // NaN too where a product with a query's codes would leave float32.
    const Vec product = _mm512_mul_ps(made.norm, splat(static_cast<float>(call.width) * kInt8Peak));
    spoilt = _mm512_fmadd_ps(product, _mm512_setzero_ps(), spoilt);
  }
  *head.norm = _mm512_reduce_max_ps(longest) + _mm512_reduce_add_ps(spoilt);
}

// Sixteen columns of one token, ones behind the last.
inline Vec value_columns(const Call& call, const float* v, int64_t t, int64_t c) {
  if (t >= call.tokens) return _mm512_setzero_ps();
  const Vec values = load(v + t * call.v_stride[2] + c, lanes(std::max<int64_t>(call.width - c, 0)));
  const __mmask16 one = call.width - c < kLanes ? 1 << (call.width - c) : 0;
  return _mm512_mask_mov_ps(values, one, splat(1));
}

// Whole numbers up to 127 of each column within a block, four tokens side by side.
void pack_byte_values(const Call& call, const float* v, const Head& head) {
  for (int64_t first = 0; first < head.tokens; first += kBlock) {
    const int64_t last = std::min(head.tokens, first + kBlock);
    float* scale = head.value_scale + first / kBlock * head.columns;
    for (int64_t c = 0; c < head.columns; c += kLanes) {
      const __mmask16 mask = lanes(head.columns - c);
      __m512i top = _mm512_setzero_si512();
      for (int64_t t = first; t < last; ++t)
        top = _mm512_max_epu32(top, _mm512_castps_si512(_mm512_abs_ps(value_columns(call, v, t, c))));
      const Levels levels(top);
      store(scale + c, mask, levels.scale);
      for (int64_t t = first; t < last; t += kGroupBytes) {
        __m512i group = _mm512_setzero_si512();
        for (int64_t i = 0; i < kGroupBytes; ++i) {
          const Vec level = _mm512_mul_ps(value_columns(call, v, t + i, c), levels.inverse_scale);
          const __m512i byte = _mm512_and_si512(_mm512_cvtps_epi32(level), _mm512_set1_epi32(0xff));
          group = _mm512_or_si512(group, _mm512_slli_epi32(byte, 8 * i));
        }
        uint8_t* to = head.values + t * head.columns + c * kGroupBytes;
        store(reinterpret_cast<float*>(to), mask, _mm512_castsi512_ps(group));
      }
    }
  }
}

void pack_values(const Call& call, const float* v, const Head& head) {
  const __m512i side_by_side =
      _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,  //
                       23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  for (int64_t t = 0; t < head.tokens; t += 2) {
    fetch(v + (t + kAhead) * call.v_stride[2], call.v_stride[2], 2, call.width);
    uint16_t* pairs = head.pairs() + t * head.columns;
    for (int64_t c = 0; c < head.columns; c += kLanes) {
      const Vec first = value_columns(call, v, t, c), second = value_columns(call, v, t + 1, c);
      const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(second, first);
      // Up to the end of all pairs: what goes behind this one, the next ones write over.
      const int64_t left = (head.tokens - t) / 2 * head.columns - c;
      store(reinterpret_cast<float*>(pairs + 2 * c), lanes(left),
            _mm512_castsi512_ps(_mm512_permutexvar_epi16(side_by_side, both)));
    }
  }
}

}  // namespace

void pack(const Call& call, int64_t index) {
  const Head head(call, index);
  const float* k = row_of(call.k, call.k_stride, call.heads, index, 0);
  const float* v = row_of(call.v, call.v_stride, call.heads, index, 0);
  call.precise ? pack_keys<Bf16>(call, k, head) : pack_keys<Int8>(call, k, head);
  call.precise ? pack_values(call, v, head) : pack_byte_values(call, v, head);
}

}  // namespace attention

#endif
