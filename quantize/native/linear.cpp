// Bytes times signed bytes, for Linear layers: sums in 32 bits, and what follows a layer in the same pass.
//
// A tile is kRows rows by two panels of outputs (native/panels.h), all of its sums in registers. Where the
// output is gated (native/rows.cpp) a tile holds a panel of values and the panel of their gates, and writes
// bytes: the floats, eight times as many bytes, are never in memory.

#include "panels.h"

namespace {

constexpr int64_t kChunkBytes = 1 << 18;  // of inputs that a thread goes over again and again: a part of L2
// Of outputs: beyond it they are written past the caches, which would first read what they then lose again.
constexpr int64_t kCachedBytes = 1 << 20;
constexpr int64_t kColumnTasks = 8;       // of a chunk of rows, so that threads share those of few rows

struct Sums {
  __m512i of[kRows][4];
};

// Laid out by quantize/backends/cpu_packed.py.
struct Linear {
  const uint8_t* x;       // [rows, inputs]
  const int8_t* weights;  // [panels, inputs up / 4, kPanel, 4]
  const int32_t* sums;    // [panels * kPanel], of each output's weights
  const float* scale;     // [panels * kPanel]
  const float* bias;      // [panels * kPanel]
  float* out;             // [rows, outputs]
  uint8_t* bytes;         // [rows, outputs / 2], of gated outputs
  int64_t rows, inputs, outputs, zero, out_zero, onto, threads;  // onto: whether to add to what `out` holds
  float x_scale, out_scale;

  int64_t groups() const { return (inputs + kGroup - 1) / kGroup; }
  int64_t panels() const { return (outputs + kPanel - 1) / kPanel; }
  bool past_caches() const {
    const bool whole_lines = outputs % kLanes == 0 && reinterpret_cast<uintptr_t>(out) % 64 == 0;
    return whole_lines && rows * outputs * 4 > kCachedBytes;
  }
  const int8_t* panel(int64_t index) const { return weights + index * groups() * kPanel * kGroup; }
};

template <int kCount>
inline void multiply(const Linear& call, const uint8_t* rows, const int8_t* one, const int8_t* two,
                     const Scaling (&scaling)[4], Sums& sums) {
  const uint8_t* x[kCount];
  __m512i sum[kCount][4];
#pragma GCC unroll 6
  for (int r = 0; r < kCount; ++r) {
    x[r] = rows + r * call.inputs;
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) sum[r][v] = scaling[v].start;
  }
  const int64_t whole = call.inputs / kGroup * kGroup;
  for (int64_t at = 0; at < whole; at += kGroup)
    step<kCount>(x, at, kGroup, one + at * kPanel, two + at * kPanel, sum);
  if (whole < call.inputs)
    step<kCount>(x, whole, call.inputs - whole, one + whole * kPanel, two + whole * kPanel, sum);
#pragma GCC unroll 6
  for (int r = 0; r < kCount; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) sums.of[r][v] = sum[r][v];
}

// One tile of numbers, from output `column` on.
template <int kCount>
void tile(const Linear& call, int64_t row, int64_t column, const Scaling (&scaling)[4]) {
  const int8_t* one = call.panel(column / kPanel);
  const int8_t* two = column + kPanel < call.outputs ? call.panel(column / kPanel + 1) : one;
  float* const out = call.out + row * call.outputs + column;
  const bool past_caches = call.past_caches();
  for (int r = 0; r < kCount; ++r)  // there when the sums are: up to a tenth of the time (Zen 4)
    for (int v = 0; v < 4 && (call.onto || !past_caches); ++v)
      _mm_prefetch(out + r * call.outputs + v * kLanes, _MM_HINT_T0);
  Sums sums;
  multiply<kCount>(call, call.x + row * call.inputs, one, two, scaling, sums);
  for (int r = 0; r < kCount; ++r) {
    for (int v = 0; v < 4 && column + v * kLanes < call.outputs; ++v) {
      const __mmask16 mask = lanes(call.outputs - column - v * kLanes);
      const int64_t at = r * call.outputs + v * kLanes;
      Vec y = scaling[v].number(sums.of[r][v]);
      if (call.onto) y = _mm512_add_ps(y, load(out + at, mask));
      if (past_caches)
        _mm512_stream_ps(out + at, y);
      else
        store(out + at, mask, y);
    }
  }
}

// One tile of gated outputs, from output `column` on; the width is whole panels.
template <int kCount>
void gated_tile(const Linear& call, int64_t row, int64_t column, const Scaling (&scaling)[4]) {
  const int64_t width = call.outputs / 2;
  const ToBytes to(call.out_scale, call.out_zero);
  Sums sums;
  multiply<kCount>(call, call.x + row * call.inputs, call.panel(column / kPanel),
                   call.panel((column + width) / kPanel), scaling, sums);
  for (int r = 0; r < kCount; ++r) {
    for (int v = 0; v < 2; ++v) {
      const Vec gate = gelu(scaling[v + 2].number(sums.of[r][v + 2]));
      const Vec y = _mm512_mul_ps(scaling[v].number(sums.of[r][v]), gate);
      store(call.bytes + (row + r) * width + column + v * kLanes, kAll, to.fast(y));
    }
  }
}

using Tile = void (*)(const Linear&, int64_t, int64_t, const Scaling (&)[4]);
constexpr Tile kTiles[kRows + 1] = {nullptr, tile<1>, tile<2>, tile<3>, tile<4>, tile<5>, tile<6>};
constexpr Tile kGatedTiles[kRows + 1] = {nullptr,       gated_tile<1>, gated_tile<2>, gated_tile<3>,
                                         gated_tile<4>, gated_tile<5>, gated_tile<6>};

// How tiles cover the outputs: `width` of them in steps; a tile's second panel begins `second` later.
struct Cover {
  const Tile* tiles;
  int64_t width, step, second;
};

// Outputs from `first` to `last` of rows from `row` to `end`.
void part(const Linear& call, const Cover& cover, int64_t row, int64_t end, int64_t first, int64_t last) {
  for (int64_t column = first; column < last; column += cover.step) {
    const int64_t other = std::min(column + cover.second, (call.panels() - 1) * kPanel);
    const Scaling scaling[4] = {
        {call, column}, {call, column + kLanes}, {call, other}, {call, other + kLanes}};
    for (int64_t r = row; r < end; r += kRows)
      cover.tiles[std::min<int64_t>(kRows, end - r)](call, r, column, scaling);
  }
}

void walk(const Linear& call, const Cover& cover) {
  if (!call.rows) return;  // an empty batch, of which there are no chunks
  const int64_t most = std::max<int64_t>(kChunkBytes / call.inputs / kRows, 1) * kRows;
  const int64_t chunks = (call.rows + most - 1) / most;
  const int64_t rows = (call.rows + chunks * kRows - 1) / (chunks * kRows) * kRows;
  const int64_t steps = cover.step * kColumnTasks;
  const int64_t columns = (cover.width + steps - 1) / steps * cover.step;
  const int64_t tasks = (cover.width + columns - 1) / columns;
  const int64_t values = call.rows * call.outputs * call.inputs / kSumsPerValue;
#pragma omp parallel for num_threads(useful_threads(values, call.threads)) schedule(dynamic)
  for (int64_t task = 0; task < chunks * tasks; ++task) {
    const int64_t row = task / tasks * rows, first = task % tasks * columns;
    part(call, cover, row, std::min(call.rows, row + rows), first, std::min(cover.width, first + columns));
    _mm_sfence();  // what went past the caches is there before the next thread reads it
  }
}

}  // namespace

extern "C" {

// weight [outputs, inputs] -> packed [panels, inputs up / 4, kPanel, 4] and sums [panels * kPanel]; what
// fills up is zero.
void fw_linear_pack(const int8_t* weight, int64_t outputs, int64_t inputs, int8_t* packed, int32_t* sums) {
  const int64_t panels = (outputs + kPanel - 1) / kPanel;
  for (int64_t panel = 0; panel < panels; ++panel) {
    const int64_t first = panel * kPanel, count = std::min(kPanel, outputs - first);
    std::fill(sums + first, sums + first + kPanel, 0);
    for (int64_t k = 0; k < inputs; k += kGroup, packed += kPanel * kGroup) {
      const int64_t taken = std::min(kGroup, inputs - k);
      std::memset(packed, 0, kPanel * kGroup);
      for (int64_t n = 0; n < count; ++n) {
        const int8_t* from = weight + (first + n) * inputs + k;
        for (int64_t i = 0; i < taken; ++i) sums[first + n] += packed[n * kGroup + i] = from[i];
      }
    }
  }
}

void fw_linear(const void* call) {
  const Linear& given = *static_cast<const Linear*>(call);
  walk(given, {kTiles, given.outputs, 2 * kPanel, kPanel});
}

// The first half of the outputs times the GELU of the second, as bytes.
void fw_linear_gated(const void* call) {
  const Linear& given = *static_cast<const Linear*>(call);
  walk(given, {kGatedTiles, given.outputs / 2, kPanel, given.outputs / 2});
}

}  // extern "C"
