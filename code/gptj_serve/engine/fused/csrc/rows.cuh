// What cuBLAS leaves to do when there are many rows: prompts, and batches too large for decode.cuh.
#pragma once
#include "decode.cuh"

namespace fused {

// What the in-projection gave: q and k are rotated in place, k and v go into the cache,
// gelu(fc_in + bias) into `mixed`. Grid: tokens, and thread blocks that share one.
__global__ void __launch_bounds__(THREADS)
finish_in_rows(const Model model, const Cache cache, const Tokens tokens, const Scratch scratch, const int layer) {
  const int token = blockIdx.x, d = model.d, position = tokens.positions[token];
  const int first = blockIdx.y * THREADS + threadIdx.x, stride = gridDim.y * THREADS;
  half *row = scratch.projected + static_cast<int64_t>(token) * (3 * d + model.inner);
  half2 *mixed = reinterpret_cast<half2 *>(scratch.mixed + static_cast<int64_t>(token) * (model.inner + d));
  const half2 *inner = reinterpret_cast<const half2 *>(row + 3 * d);
  const half2 *bias = reinterpret_cast<const half2 *>(model.in_bias + static_cast<int64_t>(layer) * model.inner);
  for (int i = first; i < model.inner / 2; i += stride) {
    float2 v = __half22float2(inner[i]), b = __half22float2(bias[i]);
    mixed[i] = __floats2half2_rn(gelu(v.x + b.x), gelu(v.y + b.y));
  }
  if (position < 0) return;
  const int cache_row = tokens.cache_rows[token];
  const int64_t block = static_cast<int64_t>(cache_row / BLOCK_SIZE) * model.num_heads;
  for (int i = first; i < 3 * d / 2; i += stride) {
    const int section = i / (d / 2), at = i % (d / 2) * 2, head = at / model.head_dim, in_head = at % model.head_dim;
    half2 *pair = reinterpret_cast<half2 *>(row) + i;
    float2 v = __half22float2(*pair);
    if (section < 2 && in_head < model.rotary_dim) {
      float2 turn = model.rotary[position * (model.rotary_dim / 2) + in_head / 2];
      v = make_float2(fmaf(-v.y, turn.y, v.x * turn.x), fmaf(v.x, turn.y, v.y * turn.x));
      *pair = __floats2half2_rn(v.x, v.y);
    }
    if (section == 0) continue;
    const int64_t place = ((block + head) * BLOCK_SIZE + cache_row % BLOCK_SIZE) * model.head_dim + in_head;
    half *to = (section == 1 ? cache.keys : cache.values) + layer * cache.layer_stride + place;
    *reinterpret_cast<half2 *>(to) = __floats2half2_rn(v.x, v.y);
  }
}

// Attention of one token a sequence. Grid: splits, heads, tokens.
template <int HEAD_DIM>
__global__ void __launch_bounds__(THREADS)
attend_rows(const Model model, const Cache cache, const Tokens tokens, const Scratch scratch, const int layer) {
  __shared__ typename Attention<HEAD_DIM>::Memory memory;
  const AttentionRow row = attention_row(model, cache, tokens, scratch, scratch.projected, 3 * model.d + model.inner,
                                         layer, blockIdx.z, blockIdx.y);
  const int splits = num_splits(row.length, LONG_SPLIT_POSITIONS);
  if (row.length < 1 || blockIdx.x >= splits) return;
  Attention<HEAD_DIM>::run(row, blockIdx.x, splits, memory);
}

// hidden += added + bias, normed = the next LayerNorm. One thread block a token.
__global__ void __launch_bounds__(THREADS)
add_and_normalise_rows(const Model model, const Scratch scratch, const int layer) {
  const int d = model.d;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * d;
  const half2 *more = reinterpret_cast<const half2 *>(scratch.added + at);
  const half2 *bias = reinterpret_cast<const half2 *>(model.out_bias + static_cast<int64_t>(layer) * d);
  float2 *hidden = reinterpret_cast<float2 *>(scratch.hidden + at);
  for (int i = threadIdx.x; i < d / 2; i += THREADS) {
    float2 h = hidden[i], m = __half22float2(more[i]), b = __half22float2(bias[i]);
    hidden[i] = make_float2(h.x + m.x + b.x, h.y + m.y + b.y);
  }
  __threadfence_block();
  __syncthreads();
  normalise_row(scratch.hidden + at, model.norm_weight + static_cast<int64_t>(layer + 1) * d,
                model.norm_bias + static_cast<int64_t>(layer + 1) * d, scratch.normed + at, d, model.epsilon);
}

// logits += bias, and the likeliest token. One thread block a token.
__global__ void __launch_bounds__(THREADS)
choose_rows(const Model model, const Tokens tokens, const Scratch scratch) {
  __shared__ uint64_t best[WARPS];
  float *logits = scratch.logits + static_cast<int64_t>(blockIdx.x) * model.vocab;
  uint64_t key = 0;
  for (int row = threadIdx.x; row < model.vocab; row += THREADS) {
    float logit = logits[row] + __half2float(model.head_bias[row]);
    logits[row] = logit;
    uint64_t other = sort_key(logit, row);
    key = other > key ? other : key;
  }
#pragma unroll
  for (int offset = 16; offset; offset >>= 1) {
    uint64_t other = __shfl_xor_sync(ALL_LANES, key, offset);
    key = other > key ? other : key;
  }
  if (threadIdx.x % 32 == 0) best[threadIdx.x / 32] = key;
  __syncthreads();
  if (threadIdx.x) return;
  for (int warp = 1; warp < WARPS; warp++) key = best[warp] > key ? best[warp] : key;
  choose(tokens, scratch, blockIdx.x, key);
}

}  // namespace fused
