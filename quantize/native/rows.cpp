// Numbers to bytes: as they are, behind a layer norm, behind the gate of a transformer's feed-forward part.
//
// Each kernel writes bytes or, where `range` is not null, the ends of what it would write. A row stays in the nearest cache while it is looked at more than once. Everything goes by value: bytes may
// alias anything, so what lies in memory would be read again after each store.

#include "vector.h"

namespace {

// Two streams and much arithmetic: the CPU's own prefetching falls behind by a fifth (measured on Zen 4).
constexpr int64_t kAhead = 512;

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

struct NormedRows {
  const float *x, *weight, *bias;
  int64_t width;
  float eps;
};

// Calls use(index of the first, mask, sixteen normed values) along a row.
template <typename Use>
inline void along(NormedRows rows, int64_t row, Use use) {
  const float* x = rows.x + row * rows.width;
  const Moments of(x, rows.width, rows.eps);
  for (int64_t i = 0; i < rows.width; i += kLanes) {
    const __mmask16 mask = lanes(rows.width - i);
    const Vec y = _mm512_mul_ps(_mm512_sub_ps(load(x + i, mask), splat(of.mean)), splat(of.slope));
    use(i, mask, _mm512_fmadd_ps(y, load(rows.weight + i, mask), load(rows.bias + i, mask)));
  }
}

// value * gelu(gate), Shazeer 2020, "GLU Variants Improve Transformer", with the exact GELU: a row holds
// `width` values first, then their gates.
struct GatedRows {
  const float* x;
  int64_t width;
};

inline void prefetch(const float* x) { _mm_prefetch(reinterpret_cast<const char*>(x), _MM_HINT_T0); }

template <typename Use>
inline void along(GatedRows rows, int64_t row, Use use) {
  const int64_t width = rows.width;
  const float* x = rows.x + row * 2 * width;
  for (int64_t i = 0; i < width; i += kLanes) {
    const __mmask16 mask = lanes(width - i);
    prefetch(x + i + kAhead);
    prefetch(x + width + i + kAhead);
    use(i, mask, _mm512_mul_ps(load(x + i, mask), gelu(load(x + width + i, mask))));
  }
}

template <typename Rows>
void find_range(Rows rows, int64_t count, int64_t threads, float* range) {
  Range all;
#pragma omp parallel for num_threads(useful_threads(count * rows.width, threads)) reduction(join : all) \
    schedule(static)
  for (int64_t row = 0; row < count; ++row) {
    Extremes seen;
    along(rows, row, [&](int64_t, __mmask16 mask, Vec y) { seen.see(y, mask); });
    all.join(seen.lowest(), seen.highest());
  }
  all.put(range);
}

template <typename Rows>
void to_bytes(Rows rows, int64_t count, ToBytes to, int64_t threads, uint8_t* out, float* range) {
  if (range) return find_range(rows, count, threads, range);
#pragma omp parallel for num_threads(useful_threads(count * rows.width, threads)) schedule(static)
  for (int64_t row = 0; row < count; ++row) {
    uint8_t* const line = out + row * rows.width;
    along(rows, row, [=](int64_t i, __mmask16 mask, Vec y) { store(line + i, mask, to.fast(y)); });
  }
}

constexpr int64_t kBlock = 1 << 12;  // values a thread takes at a time, where there are no rows

void find_extremes(const float* x, int64_t n, int64_t threads, float* range) {
  Range all;
#pragma omp parallel for num_threads(useful_threads(n, threads)) reduction(join : all) schedule(static)
  for (int64_t start = 0; start < n; start += kBlock) {
    const int64_t end = std::min(n, start + kBlock);
    Extremes seen[4];  // one alone would wait for itself
    int64_t i = start;
    for (; i + 4 * kLanes <= end; i += 4 * kLanes)
      for (int64_t part = 0; part < 4; ++part) seen[part].see(load(x + i + part * kLanes, kAll));
    for (; i < end; i += kLanes) seen[0].see(load(x + i, lanes(end - i)), lanes(end - i));
    for (const Extremes& one : seen) all.join(one.lowest(), one.highest());
  }
  all.put(range);
}

}  // namespace

extern "C" {

// x: n > 0 values in any order.
void fw_bytes(const float* x, int64_t n, float scale, int64_t zero, int64_t threads, uint8_t* out,
              float* range) {
  if (range) return find_extremes(x, n, threads, range);
#pragma omp parallel for num_threads(useful_threads(n, threads)) schedule(static)
  for (int64_t start = 0; start < n; start += kBlock) {
    const ToBytes to(scale, zero);
    const int64_t end = std::min(n, start + kBlock);
    for (int64_t i = start; i < end; i += kLanes) {
      const __mmask16 mask = lanes(end - i);
      store(out + i, mask, to.exact(load(x + i, mask)));
    }
  }
}

// x [rows, width].
void fw_layer_norm(const float* x, int64_t rows, int64_t width, const float* weight, const float* bias,
                   float eps, float scale, int64_t zero, int64_t threads, uint8_t* out, float* range) {
  to_bytes(NormedRows{x, weight, bias, width, eps}, rows, ToBytes(scale, zero), threads, out, range);
}

// x [rows, 2 * width].
void fw_geglu(const float* x, int64_t rows, int64_t width, float scale, int64_t zero, int64_t threads,
              uint8_t* out, float* range) {
  to_bytes(GatedRows{x, width}, rows, ToBytes(scale, zero), threads, out, range);
}

}  // extern "C"
