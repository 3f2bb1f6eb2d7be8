// What the files of the attention kernel share: the call, a head's keys and values, the two kinds of codes.

#pragma once

#include <cstdint>

#if defined(__AVX512BF16__) && defined(__AVX512VNNI__) && defined(__AVX512VBMI__) && defined(__AVX512BW__)
#define FW_ATTENTION 1

#include <algorithm>
#include <cmath>
#include <cstring>

#include "vector.h"

namespace attention {

constexpr int kTile = 8;         // tokens whose logits are in registers at a time
constexpr int kBlock = 48;       // tokens whose byte weights are relative to the largest of them
constexpr int kGroupBytes = 4;   // of a row that one instruction multiplies: four int8 or two bfloat16
constexpr int kGroupApart = 64;  // of sixteen keys, whose first groups lie together, then their second ones
constexpr int kMaxWidth = 512;   // of a head: what a block of rows needs is on the stack
constexpr int kLineFloats = 16;  // of a cache line
constexpr float kInt8Peak = 127;
constexpr float kTiny = 1.17549435e-38f;  // the least normal number

// Sixteen numbers of 32 bits. As __m512i, which is eight of 64, GCC 12 keeps two registers for each sum.
using Ints = __v16si;

// Laid out by quantize/cpu/attention.py. `tokens up`: to a multiple of kLanes. Strides: of batch, head and
// row, in numbers.
struct Call {
  const float *q, *k, *v;
  float* out;        // [batch, queries, heads, width]
  uint8_t* codes;      // [batch * heads, tokens up / 16, row_bytes / 4, 16, 4]
  uint8_t* values;     // [batch * heads, tokens up, width + 1] of int8 or bfloat16
  float* value_scale;  // [batch * heads, blocks, width + 1], of int8 values
  float* scale;        // [batch * heads, tokens up]
  int32_t* start;      // [batch * heads, tokens up]
  float* norm;         // [batch * heads]
  uint8_t* bytes;      // in place of `out`, or null
  int64_t batch, heads, queries, tokens, width, row_bytes, precise, threads;
  int64_t q_stride[3], k_stride[3], v_stride[3];
  int64_t zero;  // of `bytes`
  float step;
};

// A head's part of what `pack` makes.
struct Head {
  uint8_t* codes;      // [tokens / 16, row_bytes / 4, 16, 4], of keys without their mean
  uint8_t* values;     // [tokens / 4, columns, 4], int8; or `pairs`. The last column is ones
  float* value_scale;  // [blocks, columns], of int8 values
  float* scale;        // [tokens], of int8 codes
  int32_t* start;      // [tokens], -128 times the sum of the int8 codes: undoes `Int8::kFlip`
  float* norm;         // length of the longest key; NaN where there is no answer
  int64_t tokens, columns, row_bytes;

  Head(const Call& call, int64_t index)
      : tokens((call.tokens + kTile - 1) / kTile * kTile),
        columns(call.width + 1),
        row_bytes(call.row_bytes) {
    const int64_t before = index * ((call.tokens + kLanes - 1) / kLanes * kLanes);
    codes = call.codes + before * row_bytes;
    values = call.values + before * columns * (call.precise ? 2 : 1);
    value_scale = call.value_scale + index * ((tokens + kBlock - 1) / kBlock) * columns;
    scale = call.scale + before;
    start = call.start + before;
    norm = call.norm + index;
  }

  // [tokens / 2, columns, 2], bfloat16: two tokens side by side.
  uint16_t* pairs() const { return reinterpret_cast<uint16_t*>(values); }

  // The first group of token t: of the next token's it is kGroupBytes further on, its next one kGroupApart.
  const uint8_t* key(int64_t t) const {
    return codes + t / kLanes * kLanes * row_bytes + t % kLanes * kGroupBytes;
  }
};

void pack(const Call& call, int64_t index);

inline const float* row_of(const float* x, const int64_t* stride, int64_t heads, int64_t index, int64_t row) {
  return x + index / heads * stride[0] + index % heads * stride[1] + row * stride[2];
}

// Rows of a head lie far apart, which the CPU does not foresee: asked for early, none is waited for.
inline void fetch(const float* rows, int64_t stride, int64_t count, int64_t width) {
  for (int64_t r = 0; r < count; ++r)
    for (int64_t c = 0; c < width; c += kLineFloats) _mm_prefetch(rows + r * stride + c, _MM_HINT_T1);
}

// How sixteen rows were coded. norm: their length, not finite where a number is not.
struct Lanes {
  Vec scale, norm;
  __m512i sum;  // of int8 codes
};

// How int8 codes stand for numbers up to `top`, given as bits; zeros for numbers too small for a scale.
struct Levels {
  Vec scale, inverse_scale;

  explicit Levels(__m512i top) {
    const Vec step = _mm512_div_ps(_mm512_castsi512_ps(top), splat(kInt8Peak));
    const __mmask16 tiny = _mm512_cmp_ps_mask(step, splat(kTiny), _CMP_LT_OQ);  // not NaN
    scale = _mm512_mask_mov_ps(step, tiny, _mm512_setzero_ps());
    inverse_scale = _mm512_maskz_div_ps(~tiny, splat(1), step);
  }
};

struct Int8 {
  // q's codes go above zero by 128, since the instruction wants one side without sign.
  static constexpr uint32_t kFlip = 0x80808080;
  static constexpr float kUnit = 0, kLeast = -32768;

  using Sum = Ints;
  static Sum dot(Sum sum, __m512i q, __m512i k) { return (Sum)_mm512_dpbusd_epi32((__m512i)sum, q, k); }
  static Sum start(const Head& head, int64_t t) { return (Sum)_mm512_set1_epi32(head.start[t]); }
  static Vec logit(Sum sum, const Head& head, int64_t t) {
    return _mm512_mul_ps(_mm512_cvtepi32_ps((__m512i)sum), splat(head.scale[t]));
  }

  // Sixteen rows, given as columns [n up to a group, 16]. A group's codes lie `apart` bytes behind those of
  // the group before. Zeros for numbers too small for a scale.
  static Lanes encode(const float* columns, int64_t n, uint32_t flip, uint8_t* codes, int64_t apart) {
    __m512i top = _mm512_setzero_si512(), sum = top;  // by bits, infinity and NaN are above all numbers
    for (int64_t c = 0; c < n; ++c)
      top = _mm512_max_epu32(top, _mm512_castps_si512(_mm512_abs_ps(_mm512_load_ps(columns + c * kLanes))));
    const Levels levels(top);
    Vec squares = _mm512_setzero_ps();
    for (int64_t c = 0; c < n; c += kGroupBytes, codes += apart) {
      __m512i group = _mm512_set1_epi32(flip);
      for (int64_t i = 0; i < kGroupBytes; ++i) {
        const Vec level = _mm512_mul_ps(_mm512_load_ps(columns + (c + i) * kLanes), levels.inverse_scale);
        const __m512i code = _mm512_cvtps_epi32(level);
        const __m512i byte = _mm512_and_si512(code, _mm512_set1_epi32(0xff));
        group = _mm512_xor_si512(group, _mm512_slli_epi32(byte, 8 * i));
        sum = _mm512_add_epi32(sum, code);
        squares = _mm512_fmadd_ps(level, level, squares);
      }
      _mm512_storeu_si512(codes, group);
    }
    return {levels.scale, _mm512_mul_ps(_mm512_sqrt_ps(squares), levels.scale), sum};
  }
};

struct Bf16 {
  static constexpr uint32_t kFlip = 0;
  static constexpr float kUnit = 127 * 128, kLeast = 0;  // the bits of 1 and of 0 in bfloat16

  using Sum = Vec;
  static Sum dot(Sum sum, __m512i q, __m512i k) { return _mm512_dpbf16_ps(sum, (__m512bh)q, (__m512bh)k); }
  static Sum start(const Head&, int64_t) { return _mm512_setzero_ps(); }
  static Vec logit(Sum sum, const Head&, int64_t) { return sum; }

  static Lanes encode(const float* columns, int64_t n, uint32_t, uint8_t* codes, int64_t apart) {
    const auto code = [&](int64_t c) {
      return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_load_ps(columns + c * kLanes)));
    };
    Vec squares = _mm512_setzero_ps();
    for (int64_t c = 0; c < n; c += 2, codes += apart) {
      _mm512_storeu_si512(codes, _mm512_or_si512(code(c), _mm512_slli_epi32(code(c + 1), 16)));
      for (int64_t i = c; i < c + 2; ++i) {
        const Vec part = _mm512_load_ps(columns + i * kLanes);
        squares = _mm512_fmadd_ps(part, part, squares);
      }
    }
    return {splat(1), _mm512_sqrt_ps(squares), _mm512_setzero_si512()};
  }
};

}  // namespace attention

#endif
