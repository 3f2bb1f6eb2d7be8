// Layer norm that writes bytes, row by row: a row stays in the nearest cache while its moments are taken.

#include "vector.h"

namespace {

// Sum along a row of add(sum so far, index of the first, mask). Four sums: one would wait for itself.
template <typename Add>
inline float row_sum(int64_t width, const Add& add) {
  Vec sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= width; i += 4 * kLanes)
    for (int64_t part = 0; part < 4; ++part) sums[part] = add(sums[part], i + part * kLanes, kAll);
  for (; i < width; i += kLanes) sums[0] = add(sums[0], i, lanes(width - i));
  return _mm512_reduce_add_ps(
      _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])));
}

// Mean and 1 / deviation of a row.
struct Moments {
  float mean, slope;

  Moments(const float* x, int64_t width, float eps) {
    mean = row_sum(width,
                   [&](Vec sum, int64_t i, __mmask16 mask) { return _mm512_add_ps(sum, load(x + i, mask)); });
    mean /= static_cast<float>(width);
    const float squares = row_sum(width, [&](Vec sum, int64_t i, __mmask16 mask) {
      const Vec away = _mm512_maskz_sub_ps(mask, load(x + i, mask), splat(mean));
      return _mm512_fmadd_ps(away, away, sum);
    });
    slope = 1.0f / std::sqrt(squares / static_cast<float>(width) + eps);
  }
};

struct LayerNorm {
  const float *weight, *bias;
  int64_t width;
  float eps;
};

// Calls use(index of the first, mask, sixteen normed values) along a row.
// By value: bytes may alias anything, so what lies in memory would be read again after each store.
template <typename Use>
inline void normed_row(LayerNorm norm, const float* x, Use use) {
  const Moments of(x, norm.width, norm.eps);
  for (int64_t i = 0; i < norm.width; i += kLanes) {
    const __mmask16 mask = lanes(norm.width - i);
    const Vec y = _mm512_mul_ps(_mm512_sub_ps(load(x + i, mask), splat(of.mean)), splat(of.slope));
    use(i, mask, _mm512_fmadd_ps(y, load(norm.weight + i, mask), load(norm.bias + i, mask)));
  }
}

}  // namespace

extern "C" {

// x [rows, width]; range: ends of its layer norm.
void fw_layer_norm_range(const float* x, int64_t rows, int64_t width, const float* weight, const float* bias,
                         float eps, int64_t threads, float* range) {
  const LayerNorm norm{weight, bias, width, eps};
  Range all;
#pragma omp parallel for num_threads(useful_threads(rows * width, threads)) reduction(join : all) \
    schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    Extremes seen;
    normed_row(norm, x + row * width, [&](int64_t, __mmask16 mask, Vec y) { seen.see(y, mask); });
    all.join(seen.lowest(), seen.highest());
  }
  range[0] = all.low, range[1] = all.high;
}

void fw_layer_norm_bytes(const float* x, int64_t rows, int64_t width, const float* weight, const float* bias,
                         float eps, float scale, int64_t zero, int64_t threads, uint8_t* out) {
  const LayerNorm norm{weight, bias, width, eps};
  const ToBytes to(scale, zero);
#pragma omp parallel for num_threads(useful_threads(rows * width, threads)) schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    uint8_t* const line = out + row * width;
    normed_row(norm, x + row * width,
               [=](int64_t i, __mmask16 mask, Vec y) { store(line + i, mask, to.fast(y)); });
  }
}

}  // extern "C"
