// Keys to codes and values to pairs of bfloat16, once a head, before the attention kernel walks over them.

#include "attention.h"

#ifdef FW_ATTENTION

namespace attention {
namespace {

constexpr int kAhead = 16;  // rows: what is asked for now is there when its turn comes

// Mean of the keys away, then codes. The tokens that fill up the last tile get the last one's key, so that no
// maximum rises; their values are zeros.
template <class Kind>
void pack_keys(const Call& call, const float* k, const Head& head) {
  const int64_t stride = call.k_stride[2];
  alignas(64) uint8_t codes[2 * kMaxWidth];
  float mean[kMaxWidth] = {}, row[kMaxWidth], longest = 0, spoilt = 0;
  for (int64_t t = 0; t < call.tokens; ++t) {
    fetch(k + (t + kAhead) * stride, 0, 1, call.width);
    for (int64_t c = 0; c < call.width; ++c) mean[c] += k[t * stride + c];
  }
  for (int64_t c = 0; c < call.width; ++c) mean[c] /= static_cast<float>(call.tokens);
  for (int64_t t = 0; t < head.tokens; ++t) {
    const float* key = k + std::min(t, call.tokens - 1) * stride;
    fetch(key + kAhead * stride, 0, 1, call.width);
    for (int64_t c = 0; c < call.width; ++c) row[c] = key[c] - mean[c];
    const Encoded made = Kind::encode(row, call.width, codes);
    std::memcpy(head.codes + t * head.row_bytes, codes, head.row_bytes);
    head.scale[t] = made.scale;
    head.start[t] = -128 * made.sum;
    longest = std::max(longest, made.norm);
    // NaN too where a product with a query's codes would leave float32.
    spoilt += made.norm * static_cast<float>(call.width) * kInt8Peak * 0;
  }
  *head.norm = longest + spoilt;
}

// Sixteen columns of one token, ones behind the last.
inline Vec value_columns(const Call& call, const float* v, int64_t t, int64_t c) {
  if (t >= call.tokens) return _mm512_setzero_ps();
  const Vec values = load(v + t * call.v_stride[2] + c, lanes(std::max<int64_t>(call.width - c, 0)));
  const __mmask16 one = call.width - c < kLanes ? 1 << (call.width - c) : 0;
  return _mm512_mask_mov_ps(values, one, splat(1));
}

void pack_values(const Call& call, const float* v, const Head& head) {
  const __m512i side_by_side =
      _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,  //
                       23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  for (int64_t t = 0; t < head.tokens; t += 2) {
    fetch(v + (t + kAhead) * call.v_stride[2], call.v_stride[2], 2, call.width);
    uint16_t* pairs = head.values + t * head.columns;
    for (int64_t c = 0; c < head.columns; c += kLanes) {
      const Vec first = value_columns(call, v, t, c), second = value_columns(call, v, t + 1, c);
      const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(second, first);
      store(reinterpret_cast<float*>(pairs + 2 * c), lanes(head.columns - c),
            _mm512_castsi512_ps(_mm512_permutexvar_epi16(side_by_side, both)));
    }
  }
}

}  // namespace

void pack(const Call& call, int64_t index) {
  const Head head(call, index);
  const float* k = row_of(call.k, call.k_stride, call.heads, index, 0);
  call.precise ? pack_keys<Bf16>(call, k, head) : pack_keys<Int8>(call, k, head);
  pack_values(call, row_of(call.v, call.v_stride, call.heads, index, 0), head);
}

}  // namespace attention

#endif
