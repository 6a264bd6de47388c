// What cuBLAS leaves to do when there are many rows: prompts, and batches too large for decode.cuh.
#pragma once
#include "decode.cuh"

namespace fused {

// Eight halves at once.
__device__ __forceinline__ void load_8(const half *from, float (&values)[8]) {
  to_floats(*reinterpret_cast<const uint4 *>(from), values);
}
__device__ __forceinline__ void store_8(half *to, const float (&values)[8]) {
  uint4 packed;
  half2 *pairs = reinterpret_cast<half2 *>(&packed);
#pragma unroll
  for (int i = 0; i < 4; i++) pairs[i] = __floats2half2_rn(values[2 * i], values[2 * i + 1]);
  *reinterpret_cast<uint4 *>(to) = packed;
}

// The epilogue of a product that projects, where cuBLAS computed it: q and k are rotated in place, k and v go into
// the cache, the MLP's numbers through the activation into `mixed`. Grid: tokens, and thread blocks that share one.
__global__ void __launch_bounds__(THREADS)
finish_projection_rows(const Model model, const Product product, half *keys, half *values, const Tokens tokens,
                       const Scratch scratch) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int token = blockIdx.x, width = model.attention_width, position = tokens.positions[token];
  const int first = (blockIdx.y * THREADS + threadIdx.x) * 8, stride = gridDim.y * THREADS * 8;
  half *row = scratch.projected + static_cast<int64_t>(token) * product.matrix.rows;
  half *mixed = scratch.mixed + static_cast<int64_t>(token) * (model.inner + width);
  const half *inner = row + product.first_inner_row;
  const half *inner_bias = product.bias + product.first_inner_row - product.first_biased_row;
  for (int i = first; i < product.matrix.rows - product.first_inner_row; i += stride) {
    float v[8], b[8];
    load_8(inner + i, v);
    load_8(inner_bias + i, b);
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = gelu(v[j] + b[j]);
    store_8(mixed + i, v);
  }
  if (position < 0) return;
  const int cache_row = tokens.cache_rows[token];
  const int64_t block = static_cast<int64_t>(cache_row / BLOCK_SIZE) * model.num_heads;
  for (int i = first; i < product.first_inner_row; i += stride) {
    const int section = i / width, at = i % width, head = at / model.head_dim, in_head = at % model.head_dim;
    float v[8];
    load_8(row + i, v);
    const bool is_biased = i >= product.first_biased_row;
    if (is_biased) {
      float b[8];
      load_8(product.bias + i - product.first_biased_row, b);
#pragma unroll
      for (int j = 0; j < 8; j++) v[j] += b[j];
    }
    const bool is_rotated = section <= KEY && in_head < model.rotary_dim;
    if (is_rotated) {
      const float2 *turns = model.rotary + position * (model.rotary_dim / 2) + in_head / 2;
#pragma unroll
      for (int j = 0; j < 8 && in_head + j < model.rotary_dim; j += 2) {
        const float2 turn = turns[j / 2];
        const float even = v[j], odd = v[j + 1];
        v[j] = fmaf(-odd, turn.y, even * turn.x);
        v[j + 1] = fmaf(even, turn.y, odd * turn.x);
      }
    }
    if (is_rotated || is_biased) store_8(row + i, v);
    if (section == QUERY) continue;
    const int64_t place = ((block + head) * BLOCK_SIZE + cache_row % BLOCK_SIZE) * model.head_dim + in_head;
    store_8((section == KEY ? keys : values) + place, v);
  }
}

// Attention of one token a sequence. Grid: thread blocks that share the splits, heads, tokens.
constexpr int ATTEND_LOADS = 4;

template <int HEAD_DIM>
__global__ void __launch_bounds__(THREADS, 4)
attend_rows(const Model model, half *keys, half *values, const Tokens tokens, const Scratch scratch,
            const int split_positions) {
  using Rows = Attention<HEAD_DIM, ATTEND_LOADS>;
  __shared__ typename Rows::Memory memory;
  wait_for_previous_kernel();
  const int width = model.attention_width;
  const AttentionRow row = attention_row(model, keys, values, tokens, scratch, scratch.projected,
                                         3 * width + model.inner, {model.inner + width, 0}, blockIdx.z, blockIdx.y);
  if (row.length < 1) return;
  const int splits = num_splits(row.length, split_positions);
  for (int split = blockIdx.x; split < splits; split += gridDim.x) {
    Rows::run(row, split, splits, memory);
    __syncthreads();
  }
}

// The epilogue of a product that adds, where cuBLAS computed it: hidden += added + bias, normed = its LayerNorm. One
// thread block a token.
__global__ void __launch_bounds__(THREADS)
add_rows(const Model model, const Product product, const Scratch scratch) {
  constexpr int VECTORS = MAX_WIDTH / THREADS / 4;
  wait_for_previous_kernel();
  const int width = model.width;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * width;
  float4 hidden[VECTORS];
#pragma unroll
  for (int i = 0; i < VECTORS; i++) {
    const int column = (i * THREADS + threadIdx.x) * 4;
    if (column >= width) continue;
    float4 *place = reinterpret_cast<float4 *>(scratch.hidden + at + column);
    const uint2 more = *reinterpret_cast<const uint2 *>(scratch.added + at + column);
    hidden[i] = add_4(*place, more);
    if (column >= product.first_biased_row)
      hidden[i] = add_4(hidden[i], *reinterpret_cast<const uint2 *>(product.bias + column - product.first_biased_row));
    *place = hidden[i];
  }
  normalise_vectors(hidden, product.norm, scratch.normed, {width, 0}, blockIdx.x, model.epsilon);
}

constexpr int CHOOSE_THREADS = 1024; // a vocabulary is long

// logits += bias, and the likeliest token. One thread block a token.
__global__ void __launch_bounds__(CHOOSE_THREADS)
choose_rows(const Model model, const Tokens tokens, const Scratch scratch) {
  constexpr int AT_ONCE = 8; // the loads of so many are under way together
  __shared__ uint64_t best[CHOOSE_THREADS / 32];
  wait_for_previous_kernel();
  float *logits = scratch.logits + static_cast<int64_t>(blockIdx.x) * model.vocab;
  uint64_t key = 0;
  for (int first = threadIdx.x; first < model.vocab; first += AT_ONCE * CHOOSE_THREADS) {
    float values[AT_ONCE];
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      const int row = first + i * CHOOSE_THREADS;
      if (row < model.vocab) values[i] = logits[row] + __half2float(model.head_bias[row]);
    }
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      const int row = first + i * CHOOSE_THREADS;
      if (row >= model.vocab) break;
      logits[row] = values[i];
      const uint64_t other = sort_key(values[i], row);
      key = other > key ? other : key;
    }
  }
#pragma unroll
  for (int offset = 16; offset; offset >>= 1) {
    uint64_t other = __shfl_xor_sync(ALL_LANES, key, offset);
    key = other > key ? other : key;
  }
  if (threadIdx.x % 32 == 0) best[threadIdx.x / 32] = key;
  __syncthreads();
  if (threadIdx.x) return;
  for (int warp = 1; warp < CHOOSE_THREADS / 32; warp++) key = best[warp] > key ? best[warp] : key;
  choose(tokens, scratch, blockIdx.x, key);
}

}  // namespace fused
