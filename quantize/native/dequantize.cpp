// Codes of weights back to floats in one pass, for layers whose inputs stay float. The same products as
// quantize/arithmetic.py takes, each rounded once: equal to the last bit.

#include "vector.h"

namespace {

inline Vec load_bfloat16_scale(const uint16_t* scale) {
  return _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(*scale) << 16));
}

// Sixteen levels of eight bytes; the first of two is in the low half. Flipping the sign bit and taking it
// away again repeats it.
inline Vec levels(const uint8_t* packed, __mmask8 mask) {
  const __m128i half = _mm_set1_epi8(0x0F), sign = _mm_set1_epi8(8);
  const __m128i bytes = _mm_maskz_loadu_epi8(mask, packed);
  const __m128i low = _mm_and_si128(bytes, half), high = _mm_and_si128(_mm_srli_epi16(bytes, 4), half);
  const __m128i both = _mm_sub_epi8(_mm_xor_si128(_mm_unpacklo_epi8(low, high), sign), sign);
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(both));
}

}  // namespace

extern "C" {

// codes [rows, width], scale [rows] -> out [rows, width].
void fw_dequantize_int8(const int8_t* codes, const float* scale, int64_t rows, int64_t width, int64_t threads,
                        float* out) {
#pragma omp parallel for num_threads(useful_threads(rows * width, threads)) schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    const Vec step = splat(scale[row]);
    for (int64_t i = row * width; i < (row + 1) * width; i += kLanes) {
      const __mmask16 mask = lanes((row + 1) * width - i);
      const __m128i bytes = _mm_maskz_loadu_epi8(mask, codes + i);
      store(out + i, mask, _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)), step));
    }
  }
}

// packed [rows, groups, group / 2], scale [rows, groups] bfloat16 -> out [rows, width], width <= groups *
// group.
void fw_dequantize_int4(const uint8_t* packed, const uint16_t* scale, int64_t rows, int64_t groups,
                        int64_t group, int64_t width, int64_t threads, float* out) {
#pragma omp parallel for num_threads(useful_threads(rows * width, threads)) schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t part = 0; part < groups; ++part) {
      const uint8_t* from = packed + (row * groups + part) * (group / 2);
      const Vec step = load_bfloat16_scale(scale + row * groups + part);
      const int64_t first = part * group, count = std::min(group, width - first);
      for (int64_t i = 0; i < count; i += kLanes) {
        const __mmask8 bytes = static_cast<__mmask8>(lanes((group - i) / 2));
        const Vec level = levels(from + i / 2, bytes);
        store(out + row * width + first + i, lanes(count - i), _mm512_mul_ps(level, step));
      }
    }
  }
}

}  // extern "C"
