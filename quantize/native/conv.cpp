// Bytes convolved with signed bytes: sums in 32 bits, as native/linear.cpp has them, but every tap of an
// output reads another pixel.
//
// A task is kPositions positions by two panels of outputs. It takes a few taps at a time, as many as have
// weights that stay in L2 for all of its positions, and keeps the sums of each tile in between.

#include "panels.h"

namespace {

constexpr int64_t kPositions = 24 * kRows;
constexpr int64_t kBlock = 3072;  // inputs, of all taps together, whose weights are 64 times as many bytes

// Laid out by quantize/backends/cpu_packed.py. Pairs are height, width.
struct Conv {
  const uint8_t* x;       // [batch, size, inputs]
  const uint8_t* border;  // [inputs], what is read beyond the edges: bytes of zero
  const int8_t* weights;  // [panels, taps, inputs / 4, kPanel, 4]
  const int32_t* sums;    // [panels * kPanel], of each output's weights
  const float* scale;     // [panels * kPanel]
  const float* bias;      // [panels * kPanel]
  float* out;             // [batch, out_size, outputs]
  int64_t batch, inputs, outputs, zero, onto, threads;  // onto: whether to add to what `out` holds
  int64_t size[2], out_size[2], taps[2], stride[2], padding[2], dilation[2];
  float x_scale;

  int64_t positions() const { return batch * out_size[0] * out_size[1]; }
  int64_t all_taps() const { return taps[0] * taps[1]; }
  int64_t panel_bytes() const { return all_taps() * inputs * kPanel; }
};

// Where the first tap of an output falls, maybe beyond the edges.
struct Pixel {
  const uint8_t* picture;
  int64_t y, x;

  const uint8_t* tap(const Conv& call, int64_t index) const {
    const int64_t row = y + index / call.taps[1] * call.dilation[0];
    const int64_t column = x + index % call.taps[1] * call.dilation[1];
    const bool inside = row >= 0 && row < call.size[0] && column >= 0 && column < call.size[1];
    return inside ? picture + (row * call.size[1] + column) * call.inputs : call.border;
  }
};

struct Task {
  const Conv& call;
  int64_t first, count, column;  // of positions, and of outputs
  Scaling scaling[4];
  Pixel pixels[kPositions];
  alignas(64) int32_t sums[kPositions][2 * kPanel];

  Task(const Conv& call, int64_t first, int64_t count, int64_t column)
      : call(call),
        first(first),
        count(count),
        column(column),
        scaling{{call, column}, {call, column + kLanes}, {call, second()}, {call, second() + kLanes}} {
    for (int64_t p = 0; p < count; ++p) {
      const int64_t row = (first + p) / call.out_size[1], picture = row / call.out_size[0];
      pixels[p] = {call.x + picture * call.size[0] * call.size[1] * call.inputs,
                   row % call.out_size[0] * call.stride[0] - call.padding[0],
                   (first + p) % call.out_size[1] * call.stride[1] - call.padding[1]};
    }
  }
  // The other panel; the same one where there is none.
  int64_t second() const { return column + kPanel < call.outputs ? column + kPanel : column; }
  float* out(int64_t position) const { return call.out + (first + position) * call.outputs + column; }
};

template <int kCount>
void write(const Task& task, int64_t at, const __m512i (&sum)[kCount][4]) {
  const int64_t left = task.call.outputs - task.column;
#pragma GCC unroll 6
  for (int r = 0; r < kCount; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      if (v * kLanes >= left) continue;
      const __mmask16 mask = lanes(left - v * kLanes);
      float* const out = task.out(at + r) + v * kLanes;
      const Vec y = task.scaling[v].number(sum[r][v]);
      store(out, mask, task.call.onto ? _mm512_add_ps(y, load(out, mask)) : y);
    }
  }
}

// Positions from `at` on, taps from `tap` to `end`.
template <int kCount>
void tile(Task& task, int64_t at, int64_t tap, int64_t end) {
  const Conv& call = task.call;
  const bool last = end == call.all_taps();
  __m512i sum[kCount][4];
#pragma GCC unroll 6
  for (int r = 0; r < kCount; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      sum[r][v] = tap ? _mm512_load_si512(task.sums[at + r] + v * kLanes) : task.scaling[v].start;
      if (last) _mm_prefetch(task.out(at + r) + v * kLanes, _MM_HINT_ET0);  // to write
    }
  }
  const int64_t skipped = tap * call.inputs * kPanel;
  const int8_t* one = call.weights + task.column / kPanel * call.panel_bytes() + skipped;
  const int8_t* two = call.weights + task.second() / kPanel * call.panel_bytes() + skipped;
  for (; tap < end; ++tap) {
    const uint8_t* x[kCount];
    for (int r = 0; r < kCount; ++r) x[r] = task.pixels[at + r].tap(call, tap);
    for (int64_t k = 0; k < call.inputs; k += kGroup, one += kPanel * kGroup, two += kPanel * kGroup)
      step<kCount>(x, k, kGroup, one, two, sum);
  }
  if (last) return write<kCount>(task, at, sum);
#pragma GCC unroll 6
  for (int r = 0; r < kCount; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) _mm512_store_si512(task.sums[at + r] + v * kLanes, sum[r][v]);
}

using Tile = void (*)(Task&, int64_t, int64_t, int64_t);
constexpr Tile kTiles[kRows + 1] = {nullptr, tile<1>, tile<2>, tile<3>, tile<4>, tile<5>, tile<6>};

void compute(Task& task) {
  const int64_t taps = std::max<int64_t>(kBlock / task.call.inputs, 1);
  for (int64_t tap = 0; tap < task.call.all_taps(); tap += taps) {
    const int64_t end = std::min(tap + taps, task.call.all_taps());
    for (int64_t at = 0; at < task.count; at += kRows)
      kTiles[std::min<int64_t>(kRows, task.count - at)](task, at, tap, end);
  }
}

}  // namespace

extern "C" {

void fw_conv(const void* given) {
  const Conv& call = *static_cast<const Conv*>(given);
  const int64_t positions = call.positions(), chunks = (positions + kPositions - 1) / kPositions;
  if (!chunks) return;  // an empty batch
  const int64_t chunk = (positions + chunks * kRows - 1) / (chunks * kRows) * kRows;
  const int64_t columns = (call.outputs + 2 * kPanel - 1) / (2 * kPanel);
  const int64_t values = positions * call.outputs * call.all_taps() * call.inputs / kSumsPerValue;
#pragma omp parallel for num_threads(useful_threads(values, call.threads)) schedule(dynamic)
  for (int64_t index = 0; index < chunks * columns; ++index) {
    const int64_t first = index / columns * chunk, column = index % columns * 2 * kPanel;
    if (first >= positions) continue;  // whole tiles may need fewer chunks
    Task task(call, first, std::min(chunk, positions - first), column);
    compute(task);
  }
}

}  // extern "C"
