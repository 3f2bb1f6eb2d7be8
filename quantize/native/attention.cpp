// softmax(q k^T / sqrt(d)) v on bytes and bfloat16, for x86 with AVX512-VNNI, -BF16 and -VBMI.
//
// Dao et al. 2022 (FlashAttention): a block of tokens at a time, no [n, m] matrix. Zhang et al. 2024
// (SageAttention): int8 logits, of keys without their mean. The lanes of a vector are query rows; keys and
// values are broadcast. So nothing is summed across lanes, and no width wants filling up.
//
// tests/quantize/cpu/attention_reference.py has the same arithmetic in plain torch.

#include "attention.h"

#ifdef FW_ATTENTION

#include "attention_bf16.h"
#include "attention_bytes.h"

namespace attention {
namespace {

constexpr int kChunk = 4;  // blocks of rows that a thread takes at a time

template <class Kind>
void attend_rows(const Call& call, const Head& head, const Queries& queries, int64_t rows, int64_t at) {
  alignas(64) float sums[(kMaxWidth + 1) * kRows];
  if (!call.bytes) fetch(call.out + at, call.heads * call.width, rows, call.width);
  std::memset(sums, 0, head.columns * kRows * sizeof(float));
  sum_up(Kind(), head, queries, sums);
  for (int64_t r = 0; r < rows; r += kLanes, at += kLanes * call.heads * call.width)
    put_rows(call, sums + r, kRows, _mm512_load_ps(queries.spoilt + r), rows - r, at);
}

template <class Kind>
void attend_block(const Call& call, int64_t index, int64_t first) {
  const Head head(call, index);
  const float* q = row_of(call.q, call.q_stride, call.heads, index, first);
  const int64_t rows = std::min<int64_t>(kRows, call.queries - first);
  Queries queries;
  load_queries<Kind>(call, head, q, rows, queries);
  fetch(q + kRows * call.q_stride[2], call.q_stride[2], kRows, call.width);
  const int64_t row = (index / call.heads * call.queries + first) * call.heads + index % call.heads;
  attend_rows<Kind>(call, head, queries, rows, row * call.width);
}

}  // namespace
}  // namespace attention

extern "C" {

// The largest width of a head that `fw_attend` takes; 0 where the compiler knew of no such CPU.
void fw_attend_widest(int64_t* width) { *width = attention::kMaxWidth; }

void fw_attend(const attention::Call* call) {
  using namespace attention;
  const int64_t all = call->batch * call->heads, blocks = (call->queries + kRows - 1) / kRows;
#pragma omp parallel num_threads(call->threads)
  {
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < all; ++i) pack(*call, i);
#pragma omp for schedule(dynamic, kChunk)
    for (int64_t i = 0; i < all * blocks; ++i)
      call->precise ? attend_block<Bf16>(*call, i / blocks, i % blocks * kRows)
                    : attend_block<Int8>(*call, i / blocks, i % blocks * kRows);
  }
}

}  // extern "C"

#else

extern "C" void fw_attend_widest(int64_t* width) { *width = 0; }
extern "C" void fw_attend(const void*) {}

#endif
