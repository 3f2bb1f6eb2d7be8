// Passes over activations: extremes, bytes, norms and gates that write bytes.

#include <immintrin.h>

#include <cmath>
#include <cstdint>

namespace {

// Below this much work a thread costs more to wake than it saves.
constexpr int64_t kValuesPerThread = 1 << 15;

int useful_threads(int64_t values, int64_t threads) {
  const int64_t most = values / kValuesPerThread + 1;
  return static_cast<int>(threads < most ? threads : most);
}

}  // namespace

extern "C" void fw_min_max(const float* x, int64_t n, int64_t threads, float* out) {
  float low = INFINITY, high = -INFINITY;
  int64_t strange = 0;
#pragma omp parallel for num_threads(useful_threads(n, threads)) reduction(min : low) \
    reduction(max : high) reduction(+ : strange) schedule(static)
  for (int64_t i = 0; i < n; ++i) {
    low = x[i] < low ? x[i] : low;
    high = x[i] > high ? x[i] : high;
    strange += x[i] != x[i];
  }
  out[0] = strange ? NAN : low;
  out[1] = strange ? NAN : high;
}
