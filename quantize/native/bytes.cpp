// Numbers to bytes: the extremes of a tensor, and its bytes. Tensors are flat here: order does not matter.

#include "vector.h"

namespace {

constexpr int64_t kBlock = 1 << 12;  // values a thread takes at a time

template <typename T>
void extremes(const T* x, int64_t n, int64_t threads, float* out) {
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
  out[0] = all.low;
  out[1] = all.high;
}

template <typename T>
void bytes(const T* x, int64_t n, float scale, int64_t zero, int64_t threads, uint8_t* out) {
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

}  // namespace

extern "C" {

// out: smallest and largest of n > 0 values, NaN where one is.
void fw_min_max_float32(const float* x, int64_t n, int64_t threads, float* out) {
  extremes(x, n, threads, out);
}
void fw_min_max_bfloat16(const uint16_t* x, int64_t n, int64_t threads, float* out) {
  extremes(x, n, threads, out);
}

void fw_bytes_float32(const float* x, int64_t n, float scale, int64_t zero, int64_t threads, uint8_t* out) {
  bytes(x, n, scale, zero, threads, out);
}
void fw_bytes_bfloat16(const uint16_t* x, int64_t n, float scale, int64_t zero, int64_t threads,
                       uint8_t* out) {
  bytes(x, n, scale, zero, threads, out);
}

}  // extern "C"
