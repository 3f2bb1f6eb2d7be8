// The gate of a transformer's feed-forward part: value * gelu(gate), Shazeer 2020, "GLU Variants Improve
// Transformer", with the exact GELU. A row holds its values first, then its gates.

#include "vector.h"

namespace {

// Two streams and much arithmetic: the CPU's own prefetching falls behind by a fifth (measured on Zen 4).
constexpr int64_t kAhead = 512;

inline void prefetch(const float* x) { _mm_prefetch(reinterpret_cast<const char*>(x), _MM_HINT_T0); }

// Calls use(index of the first, mask, sixteen results) along a row of 2 * width numbers.
// By value: bytes may alias anything, so what lies in memory would be read again after each store.
template <typename Use>
inline void gated_row(const float* x, int64_t width, Use use) {
  for (int64_t i = 0; i < width; i += kLanes) {
    const __mmask16 mask = lanes(width - i);
    prefetch(x + i + kAhead);
    prefetch(x + width + i + kAhead);
    use(i, mask, _mm512_mul_ps(load(x + i, mask), gelu(load(x + width + i, mask))));
  }
}

}  // namespace

extern "C" {

// x [rows, 2 * width]; range: ends of what comes out.
void fw_geglu_range(const float* x, int64_t rows, int64_t width, int64_t threads, float* range) {
  Range all;
#pragma omp parallel for num_threads(useful_threads(rows * width, threads)) reduction(join : all) \
    schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    Extremes seen;
    gated_row(x + row * 2 * width, width, [&](int64_t, __mmask16 mask, Vec y) { seen.see(y, mask); });
    all.join(seen.lowest(), seen.highest());
  }
  range[0] = all.low, range[1] = all.high;
}

void fw_geglu_bytes(const float* x, int64_t rows, int64_t width, float scale, int64_t zero, int64_t threads,
                    uint8_t* out) {
  const ToBytes to(scale, zero);
#pragma omp parallel for num_threads(useful_threads(rows * width, threads)) schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    uint8_t* const line = out + row * width;
    gated_row(x + row * 2 * width, width,
              [=](int64_t i, __mmask16 mask, Vec y) { store(line + i, mask, to.fast(y)); });
  }
}

}  // extern "C"
