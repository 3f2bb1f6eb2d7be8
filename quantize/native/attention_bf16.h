// Weights and values in bfloat16, sums in float32.
//
// Weights have bfloat16's whole exponent, which makes a running maximum needless. Their sum is one more
// column of values, all ones.

#pragma once

#include "attention_steps.h"

namespace attention {
namespace {

struct Fractions {  // bfloat16's fraction of 2^(i / kSteps)
  alignas(64) uint8_t bits[kSteps];
  Fractions() {
    for (int i = 0; i < kSteps; ++i) bits[i] = std::lrint((std::exp2(i / double(kSteps)) - 1) * kSteps);
  }
};
const Fractions kFractions;

// Powers of two as bfloat16: of steps that count from its bits of zero.
inline __m512i powers(__m512i steps) {
  const __m512i exponents = _mm512_set1_epi16(static_cast<int16_t>(0xff80));
  const __m512i low = _mm512_load_si512(kFractions.bits), high = _mm512_load_si512(kFractions.bits + 64);
  const __m512i fractions = _mm512_maskz_permutex2var_epi8(0x5555555555555555, low, steps, high);
  return _mm512_ternarylogic_epi32(steps, exponents, fractions, 0xea);  // (steps & exponents) | fractions
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

constexpr decltype(&add<1>) kAdd[kColumns + 1] = {
    nullptr, add<1>, add<2>,  add<3>,  add<4>,  add<5>,  add<6>, add<7>,
    add<8>,  add<9>, add<10>, add<11>, add<12>, add<13>, add<14>};

inline void sum_up(Bf16, const Head& head, const Queries& queries, float* sums) {
  constexpr int64_t kSpan = 128;  // tokens between two visits of the sums: their weights stay in L1
  alignas(64) __m512i weights[kSpan];
  for (int64_t t = 0; t < head.tokens; t += kSpan) {
    const int64_t count = std::min<int64_t>(kSpan, head.tokens - t);
    for (int64_t i = 0; i < count; i += kTile) {
      find_steps<Bf16>(head, queries, t + i, weights + i);
#pragma GCC unroll 8
      for (int j = 0; j < kTile; ++j) weights[i + j] = powers(weights[i + j]);
    }
    in_passes(head.columns, [&](int64_t c, int64_t width) {
      const uint16_t* values = head.pairs() + (t / 2 * head.columns + c) * 2;
      kAdd[width](weights, values, head.columns, count / 2, sums + c * kRows);
    });
  }
}

}  // namespace
}  // namespace attention
