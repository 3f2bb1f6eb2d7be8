// Sixteen floats at a time: loads, exp, SiLU, GELU, and the step from numbers to bytes.
//
// Functions are inline and in no namespace of a library: each source file has its own copy.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace {

using Vec = __m512;
constexpr int64_t kLanes = 16;
constexpr __mmask16 kAll = 0xFFFF;
// Below this much work a thread costs more to wake than it saves.
constexpr int64_t kValuesPerThread = 1 << 15;
constexpr float kExpLimit = 87.0f;  // exp of it, and of minus it, is still a normal float32

inline int useful_threads(int64_t values, int64_t threads) {
  return static_cast<int>(std::min(threads, values / kValuesPerThread + 1));
}

// The lanes of the `left` values that remain; all where there are more than a vector holds.
inline __mmask16 lanes(int64_t left) {
  return left >= kLanes ? kAll : static_cast<__mmask16>((1u << left) - 1);
}

inline Vec splat(float value) { return _mm512_set1_ps(value); }

inline Vec load(const float* x, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, x); }

// 1 / x to float32's last bit or two, for x whose inverse is a normal number.
inline Vec inverse(Vec x) {
  const Vec guess = _mm512_rcp14_ps(x);
  return _mm512_mul_ps(guess, _mm512_fnmadd_ps(x, guess, splat(2.0f)));  // one step of Newton's
}

// e^x for |x| <= kExpLimit; of NaN some number. 2^r on [-1/2, 1/2] is the polynomial of degree 5 whose
// largest relative error is least, 1.1e-7 (found by Lawson's reweighted least squares): float32's own.
inline Vec exp(Vec x) {
  const Vec whole = splat(12582912.0f);  // 1.5 * 2^23: what is added to it stands rounded in the low bits
  const Vec steps = _mm512_fmadd_ps(x, splat(1.44269504f), whole);
  const Vec r = _mm512_fmsub_ps(x, splat(1.44269504f), _mm512_sub_ps(steps, whole));
  Vec p = splat(0.001326472731307149f);
  p = _mm512_fmadd_ps(p, r, splat(0.009671512991189957f));
  p = _mm512_fmadd_ps(p, r, splat(0.05550733581185341f));
  p = _mm512_fmadd_ps(p, r, splat(0.24022242426872253f));
  p = _mm512_fmadd_ps(p, r, splat(0.6931470036506653f));
  p = _mm512_fmadd_ps(p, r, splat(1.0f));
  const __m512i exponents = _mm512_slli_epi32(_mm512_castps_si512(steps), 23);
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), exponents));
}

// min and max answer with their second operand where one is NaN: here the one that may be.
inline Vec at_most(Vec x, float limit) { return _mm512_min_ps(splat(limit), x); }

inline Vec silu(Vec x) {
  const Vec minus = _mm512_sub_ps(_mm512_setzero_ps(), x);
  const Vec within = _mm512_max_ps(splat(-kExpLimit), at_most(minus, kExpLimit));
  return _mm512_mul_ps(x, inverse(_mm512_add_ps(splat(1.0f), exp(within))));
}

// x times the normal distribution's share below x. The share is Abramowitz & Stegun 1964, 7.1.26 (Hastings),
// whose error is below 1e-7: float32's own near 1.
inline Vec gelu(Vec x) {
  const Vec far = at_most(_mm512_abs_ps(x), 13.0f);  // exp(-13^2 / 2) is within kExpLimit
  const Vec u = inverse(_mm512_fmadd_ps(far, splat(0.3275911f * 0.70710678f), splat(1.0f)));
  Vec p = splat(0.5f * 1.061405429f);
  p = _mm512_fmadd_ps(p, u, splat(0.5f * -1.453152027f));
  p = _mm512_fmadd_ps(p, u, splat(0.5f * 1.421413741f));
  p = _mm512_fmadd_ps(p, u, splat(0.5f * -0.284496736f));
  p = _mm512_fmadd_ps(p, u, splat(0.5f * 0.254829592f));
  const Vec bell = exp(_mm512_mul_ps(_mm512_mul_ps(far, far), splat(-0.5f)));
  const Vec tail = _mm512_mul_ps(_mm512_mul_ps(p, u), bell);
  const __mmask16 above = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ);
  return _mm512_mul_ps(x, _mm512_mask_sub_ps(tail, above, splat(1.0f), tail));
}

// x is about scale * (byte - zero). Clamping comes before rounding: the ends are whole numbers.
struct ToBytes {
  Vec scale, inverse_scale, low, high;
  __m512i zero;

  ToBytes(float step, int64_t zero_point)
      : scale(splat(step)),
        inverse_scale(splat(1.0f / step)),
        low(splat(static_cast<float>(-zero_point))),
        high(splat(static_cast<float>(255 - zero_point))),
        zero(_mm512_set1_epi32(static_cast<int>(zero_point))) {}

  // To the bit what dividing gives.
  __m128i exact(Vec x) const { return rounded(_mm512_div_ps(x, scale)); }

  // For what was computed just before: a tie may fall to the other side.
  __m128i fast(Vec x) const { return rounded(_mm512_mul_ps(x, inverse_scale)); }

 private:
  __m128i rounded(Vec level) const {
    level = _mm512_min_ps(_mm512_max_ps(level, low), high);  // NaN becomes the lowest
    return _mm512_cvtusepi32_epi8(_mm512_add_epi32(_mm512_cvtps_epi32(level), zero));
  }
};

// Whole vectors apart: a store under a mask takes several times as long on some CPUs (Zen 4).
inline void store(uint8_t* out, __mmask16 mask, __m128i bytes) {
  if (mask == kAll)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), bytes);
  else
    _mm_mask_storeu_epi8(out, mask, bytes);
}

inline void store(float* out, __mmask16 mask, Vec values) {
  if (mask == kAll)
    _mm512_storeu_ps(out, values);
  else
    _mm512_mask_storeu_ps(out, mask, values);
}

// Smallest and largest of what was seen; both NaN once a NaN was.
struct Extremes {
  Vec low = splat(INFINITY), high = splat(-INFINITY);
  __mmask16 strange = 0;

  void see(Vec x, __mmask16 mask = kAll) {
    low = _mm512_mask_min_ps(low, mask, low, x);
    high = _mm512_mask_max_ps(high, mask, high, x);
    strange |= _mm512_mask_cmp_ps_mask(mask, x, x, _CMP_UNORD_Q);
  }

  float lowest() const { return strange ? NAN : _mm512_reduce_min_ps(low); }
  float highest() const { return strange ? NAN : _mm512_reduce_max_ps(high); }
};

// Of several threads' extremes. Comparing with NaN is false, so NaN is asked for by name.
struct Range {
  float low = INFINITY, high = -INFINITY;

  void join(float other_low, float other_high) {
    low = std::isnan(low) || other_low > low ? low : other_low;
    high = std::isnan(high) || other_high < high ? high : other_high;
  }
  void put(float* out) const { out[0] = low, out[1] = high; }
};

#pragma omp declare reduction(join:Range : omp_out.join(omp_in.low, omp_in.high))

}  // namespace
