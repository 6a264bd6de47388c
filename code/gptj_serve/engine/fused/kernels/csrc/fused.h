// What the library and its caller share. Every pointer is to device memory; nothing here owns any.
// cuda_kernels.py mirrors these structures field by field: change both together.
#pragma once
#include <cuda_fp16.h>
#include <stdint.h>

namespace fused {

constexpr int BLOCK_SIZE = 16;      // positions in one block of the KV cache
constexpr int MAX_SMALL_BATCH = 16; // rows that `fused_decode` takes
constexpr int MAX_SPLITS = 8;       // thread blocks that share one head's attention
constexpr int MAX_WIDTH = 4096;     // width of the residual stream

// Dimensions of the model. d is num_heads * head_dim; d, inner and rotary_dim are checked by the caller:
// d and inner multiples of 64, head_dim 64, 128 or 256, rotary_dim even and at most head_dim.
struct Model {
  int32_t num_layers, d, num_heads, head_dim, rotary_dim, inner, vocab;
  float epsilon;                    // of the LayerNorms
  const half *embedding;            // [vocab, d]
  const half *in_weight;            // [num_layers, 3 d + inner, d]: rows of q, k, v and fc_in
  const half *in_bias;              // [num_layers, inner]: fc_in's
  const half *out_weight;           // [num_layers, d, inner + d]: columns of fc_out, then of out_proj
  const half *out_bias;             // [num_layers, d]: fc_out's
  const half *norm_weight;          // [num_layers + 1, d]: each block's, then the last
  const half *norm_bias;            // [num_layers + 1, d]
  const half *head_weight;          // [vocab, d]
  const half *head_bias;            // [vocab]
  const float2 *rotary;             // [positions, rotary_dim / 2]: cosine and sine
};

// The KV cache. Block b of a layer holds [num_heads, BLOCK_SIZE, head_dim].
struct Cache {
  half *keys, *values;              // [num_layers, num_blocks, num_heads, BLOCK_SIZE, head_dim]
  int64_t layer_stride;             // in numbers: num_blocks * num_heads * BLOCK_SIZE * head_dim
};

// The tokens that one call computes, T of them. A token whose position is negative is padding: it is
// computed like any other, reads no cache and writes nothing that lasts.
struct Tokens {
  const int32_t *positions;         // [T]
  const int32_t *cache_rows;        // [T]: block * BLOCK_SIZE + position % BLOCK_SIZE
  const int32_t *history_rows;      // [T]: where in `history` the token's id is
  const int32_t *tables;            // [T, table_width]: each token's cache blocks, in order; decode only
  int32_t table_width;
  int64_t *history;                 // token ids; a chosen token goes behind the one it follows
};

// Scratch memory. Counters are zero before a call and are zero again after it.
struct Scratch {
  float *hidden;                    // [T, d]: the residual stream
  half *normed;                     // [T, d] in some layout: its LayerNorm, which the next product reads
  half *query;                      // [T, d]: fused_decode's
  half *projected;                  // [T, 3 d + inner]: the in-projection's result: q, k, v, fc_in
  half *mixed;                      // [T, inner + d] in some layout: gelu(fc_in), then attention
  half *added;                      // [T, d]: the out-projection's result
  float *logits;                    // [T, vocab]
  int64_t *chosen;                  // [T]: the likeliest token
  float *chosen_logit;              // [T]: its logit: NaN or infinite when any of the row's is
  float *partial;                   // [T, num_heads, MAX_SPLITS, head_dim + 2]: attention's parts
  uint64_t *best;                   // [T], counters
  uint32_t *arrived_heads;          // [num_heads * 8], counters
  uint32_t *arrived_splits;         // [T * num_heads], counters
  uint32_t *arrived;                // [8], counters
};

}  // namespace fused
