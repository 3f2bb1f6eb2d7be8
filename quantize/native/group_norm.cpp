// Group norm that writes bytes (or floats) in two passes over its input.
//
// Sums of squares are taken around a value of the same channel: around zero they lose the variance of numbers
// that are large and close together (Chan, Golub & LeVeque 1983, "Algorithms for Computing the Sample
// Variance").

#include <memory>
#include <vector>

#include "vector.h"

namespace {

// SiLU falls to its least value here and rises on both sides.
constexpr float kSiluTurn = -1.27846454f, kSiluLeast = -0.27846454f;
constexpr int64_t kChunkValues = 1 << 16;
constexpr int64_t kMostChunks = 64;

// Laid out by quantize/cpu/activations.py.
struct GroupNorm {
  const float* x;  // [batch, rows, channels]
  const float *weight, *bias;
  const float* shift;   // [batch, channels], added before the norm; may be null
  float* coefficients;  // [batch, 3, channels]: a value's norm is (x - middle) * slope + offset
  float* range;         // ends of what comes out at last, or null
  float* out;           // [batch, rows, channels], or null
  uint8_t* bytes;       // in its place
  int64_t batch, rows, channels, groups, silu, zero, threads;
  float eps, scale;

  int useful() const { return useful_threads(batch * rows * channels, threads); }
  float shift_of(int64_t image, int64_t channel) const {
    return shift ? shift[image * channels + channel] : 0.0f;
  }
  int64_t chunk_rows() const {
    const int64_t few = std::max<int64_t>(1, kChunkValues / channels);
    return std::max(few, (rows + kMostChunks - 1) / kMostChunks);
  }
  int64_t chunks() const { return (rows + chunk_rows() - 1) / chunk_rows(); }
};

// What one pass finds of a chunk, for each channel: sums of x - pivot and of its square, and extremes of x.
struct Found {
  static constexpr int64_t kFields = 5;
  float *pivot, *sum, *square, *low, *high;

  Found(float* memory, int64_t channels)
      : pivot(memory),
        sum(memory + channels),
        square(memory + 2 * channels),
        low(memory + 3 * channels),
        high(memory + 4 * channels) {}
};

template <int kRows, bool kExtremes>
inline void add_rows(const float* x, int64_t channels, const Found& to) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    const __mmask16 mask = lanes(channels - c);
    const Vec pivot = load(to.pivot + c, mask);
    Vec sum = load(to.sum + c, mask), square = load(to.square + c, mask);
    Vec low, high;
    if (kExtremes) low = load(to.low + c, mask), high = load(to.high + c, mask);
    for (int row = 0; row < kRows; ++row) {
      const Vec value = load(x + row * channels + c, mask);
      const Vec away = _mm512_sub_ps(value, pivot);
      sum = _mm512_add_ps(sum, away);
      square = _mm512_fmadd_ps(away, away, square);
      if (kExtremes) low = _mm512_min_ps(low, value), high = _mm512_max_ps(high, value);
    }
    store(to.sum + c, mask, sum);
    store(to.square + c, mask, square);
    if (kExtremes) store(to.low + c, mask, low), store(to.high + c, mask, high);
  }
}

// The pivot is the mean of four rows far apart, so that one strange pixel does not move it far.
template <bool kExtremes>
void look(const float* x, int64_t rows, int64_t channels, const Found& to) {
  constexpr int64_t kPivotRows = 4;
  std::fill(to.pivot, to.low, 0.0f);
  for (int64_t i = 0; i < kPivotRows; ++i) {
    const float* from = x + i * rows / kPivotRows * channels;
    for (int64_t c = 0; c < channels; ++c) to.pivot[c] += from[c] / kPivotRows;
  }
  if (kExtremes) std::copy(x, x + channels, to.low), std::copy(x, x + channels, to.high);
  int64_t row = 0;
  for (; row + 4 <= rows; row += 4) add_rows<4, kExtremes>(x + row * channels, channels, to);
  for (; row < rows; ++row) add_rows<1, kExtremes>(x + row * channels, channels, to);
}

// The channels of one group of one image, over all chunks: sums around the first chunk's pivots, and
// extremes.
struct Joined {
  std::vector<double> pivot, sum, square;
  std::vector<float> low, high;

  explicit Joined(int64_t size)
      : pivot(size), sum(size), square(size), low(size, INFINITY), high(size, -INFINITY) {}

  void add(const Found& part, int64_t first, double count, bool extremes) {
    const int64_t size = static_cast<int64_t>(sum.size());
    for (int64_t c = 0; c < size; ++c) {
      const double apart = part.pivot[first + c] - pivot[c], away = part.sum[first + c];
      sum[c] += away + count * apart;
      square[c] += part.square[first + c] + 2 * apart * away + count * apart * apart;
    }
    if (!extremes) return;
    for (int64_t c = 0; c < size; ++c) {
      low[c] = std::min(low[c], part.low[first + c]);
      high[c] = std::max(high[c], part.high[first + c]);
    }
  }
};

Joined join_chunks(const GroupNorm& in, int64_t image, int64_t first, int64_t size, float* scratch) {
  Joined all(size);
  for (int64_t chunk = 0; chunk < in.chunks(); ++chunk) {
    const Found part(scratch + (image * in.chunks() + chunk) * Found::kFields * in.channels, in.channels);
    if (!chunk) std::copy(part.pivot + first, part.pivot + first + size, all.pivot.begin());
    const int64_t count = std::min(in.rows - chunk * in.chunk_rows(), in.chunk_rows());
    all.add(part, first, static_cast<double>(count), in.range);
  }
  return all;
}

// What SiLU, or nothing, makes of the numbers from low to high.
Range after(float low, float high, bool silu) {
  Range out;
  out.join(low, high);
  if (!silu || std::isnan(out.low)) return out;
  const auto one = [](float x) { return x / (1.0f + std::exp(-x)); };
  out.low = low < kSiluTurn && high > kSiluTurn ? kSiluLeast : std::min(one(low), one(high));
  out.high = std::max(one(low), one(high));
  return out;
}

// Fills the coefficients of a group of an image. Answers with the ends of its norm.
Range settle_group(const GroupNorm& in, int64_t part, float* scratch) {
  const int64_t image = part / in.groups, size = in.channels / in.groups, first = part % in.groups * size;
  const Joined found = join_chunks(in, image, first, size, scratch);
  const double rows = static_cast<double>(in.rows), values = rows * static_cast<double>(size);
  double mean = 0, spread = 0;
  const auto mean_of = [&](int64_t c) {
    return found.pivot[c] + found.sum[c] / rows + in.shift_of(image, first + c);
  };
  for (int64_t c = 0; c < size; ++c) mean += mean_of(c) * rows / values;
  for (int64_t c = 0; c < size; ++c) {
    const double apart = mean_of(c) - mean;
    spread += std::max(0.0, found.square[c] - found.sum[c] * found.sum[c] / rows) + rows * apart * apart;
  }
  const double slope = 1 / std::sqrt(spread / values + in.eps);
  float* const to = in.coefficients + image * 3 * in.channels + first;
  Range range;
  for (int64_t c = 0; c < size; ++c) {
    const double exact = mean - in.shift_of(image, first + c), steep = slope * in.weight[first + c];
    const float middle = static_cast<float>(exact), factor = static_cast<float>(steep);
    const float offset = static_cast<float>(in.bias[first + c] + (middle - exact) * steep);
    to[c] = middle, to[in.channels + c] = factor, to[2 * in.channels + c] = offset;
    if (!in.range) continue;
    const float one = std::fma(found.low[c] - middle, factor, offset);
    const float two = std::fma(found.high[c] - middle, factor, offset);
    range.join(std::min(one, two), std::max(one, two));
  }
  if (in.range && !std::isfinite(mean)) range.join(NAN, NAN);  // extremes do not see NaN, sums do
  return range;
}

// By value throughout: bytes may alias anything, so what lies in memory would be read again after each store.
template <bool kSilu, typename Out, typename Finish>
inline void norm_line(const float* x, const float* middle, int64_t channels, Out* out, Finish finish) {
  const float *factor = middle + channels, *offset = factor + channels;
  for (int64_t c = 0; c < channels; c += kLanes) {
    const __mmask16 mask = lanes(channels - c);
    const Vec away = _mm512_sub_ps(load(x + c, mask), load(middle + c, mask));
    const Vec y = _mm512_fmadd_ps(away, load(factor + c, mask), load(offset + c, mask));
    store(out + c, mask, finish(kSilu ? silu(y) : y));
  }
}

template <bool kSilu, typename Out, typename Finish>
void apply_group_norm(const GroupNorm& in, Out* out, Finish finish) {
#pragma omp parallel for num_threads(in.useful()) schedule(static)
  for (int64_t line = 0; line < in.batch * in.rows; ++line) {
    const float* middle = in.coefficients + line / in.rows * 3 * in.channels;
    const int64_t start = line * in.channels;
    norm_line<kSilu>(in.x + start, middle, in.channels, out + start, finish);
  }
}

}  // namespace

extern "C" {

// Coefficients are written, and where it is not null the range: of SiLU too, by the ends of what enters it.
void fw_group_norm_stats(const GroupNorm* call) {
  const GroupNorm& in = *call;
  const int64_t chunks = in.chunks(), step = in.chunk_rows(), channels = in.channels;
  const std::unique_ptr<float[]> memory(new float[in.batch * chunks * Found::kFields * channels]);
  float* const scratch = memory.get();
  Range all;
#pragma omp parallel num_threads(in.useful())
  {
#pragma omp for schedule(static)
    for (int64_t part = 0; part < in.batch * chunks; ++part) {
      const int64_t first = part % chunks * step, count = std::min(step, in.rows - first);
      const float* from = in.x + (part / chunks * in.rows + first) * channels;
      const Found to(scratch + part * Found::kFields * channels, channels);
      in.range ? look<true>(from, count, channels, to) : look<false>(from, count, channels, to);
    }
#pragma omp for schedule(static) reduction(join : all)
    for (int64_t part = 0; part < in.batch * in.groups; ++part) {
      const Range one = settle_group(in, part, scratch);
      all.join(one.low, one.high);
    }
  }
  if (in.range) after(all.low, all.high, in.silu).put(in.range);
}

// `bytes`, through SiLU if asked, or SiLU in floats, by the coefficients.
void fw_group_norm(const GroupNorm* call) {
  const ToBytes to(call->scale, call->zero);
  const auto finish = [to](Vec y) { return to.fast(y); };
  if (call->out) return apply_group_norm<true>(*call, call->out, [](Vec y) { return y; });
  call->silu ? apply_group_norm<true>(*call, call->bytes, finish)
             : apply_group_norm<false>(*call, call->bytes, finish);
}

}  // extern "C"
