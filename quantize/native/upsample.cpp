// A 3x3 convolution behind nearest-neighbour upsampling by 2, from the products of its nine taps.
//
// Upsampled pixels repeat, and with them their products: each is computed once, at its pixel of the small
// picture, and added into the four outputs that it counts for.

#include "vector.h"

namespace {

constexpr int64_t kTaps = 3;  // of height and width each

// Laid out by quantize/fused/convolutions.py. A band is `rows` rows of every picture, from row `first` on.
struct Upsampling {
  const float* products;  // [batch, rows, width, kTaps, kTaps, channels]
  const float* bias;      // [channels]
  float* out;             // [batch, 2 * height, 2 * width, channels]
  int64_t batch, height, width, channels, first, rows, threads;
};

// The pixel that tap `tap` of output `place` falls on: of places 0, 1, 2, 3 pixels -1 0 0, 0 0 1, 0 1 1, 1 1 2.
inline int64_t pixel(int64_t place, int64_t tap) { return (place + tap + 1) / 2 - 1; }

// What the band adds to one output: the rest of it comes, or came, with the bands around.
void output(const Upsampling& call, int64_t picture, int64_t row, int64_t column) {
  const float* from[kTaps * kTaps + 1];
  int count = 0;
  float* const out =
      call.out + ((picture * 2 * call.height + row) * 2 * call.width + column) * call.channels;
  from[count++] = call.first && row <= 2 * call.first ? out : call.bias;
  for (int64_t k = 0; k < kTaps; ++k) {
    const int64_t y = pixel(row, k) - call.first;
    if (y < 0 || y >= call.rows) continue;
    for (int64_t l = 0; l < kTaps; ++l) {
      const int64_t x = pixel(column, l);
      if (x < 0 || x >= call.width) continue;
      const int64_t at = (picture * call.rows + y) * call.width + x;
      from[count++] = call.products + ((at * kTaps + k) * kTaps + l) * call.channels;
    }
  }
  for (int64_t c = 0; c < call.channels; c += kLanes) {
    const __mmask16 mask = lanes(call.channels - c);
    Vec sum = load(from[0] + c, mask);
    for (int i = 1; i < count; ++i) sum = _mm512_add_ps(sum, load(from[i] + c, mask));
    store(out + c, mask, sum);
  }
}

}  // namespace

extern "C" {

// Bands come from the top to the bottom: two rows of outputs are begun by one and finished by the next.
void fw_upsample(const void* given) {
  const Upsampling& call = *static_cast<const Upsampling*>(given);
  const int64_t from = std::max<int64_t>(2 * call.first - 1, 0);
  const int64_t to = std::min(2 * (call.first + call.rows) + 1, 2 * call.height);
  const int64_t values = call.batch * (to - from) * 2 * call.width * call.channels;
#pragma omp parallel for collapse(2) num_threads(useful_threads(values, call.threads)) schedule(static)
  for (int64_t picture = 0; picture < call.batch; ++picture)
    for (int64_t row = from; row < to; ++row)
      for (int64_t column = 0; column < 2 * call.width; ++column) output(call, picture, row, column);
}

}  // extern "C"
