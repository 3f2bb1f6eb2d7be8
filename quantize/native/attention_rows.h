// Rows of numbers to lanes of vectors and back, sixteen at a time.

#pragma once

#include "attention.h"

namespace attention {

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

}  // namespace attention
