// What the library and its caller share. Every pointer is to device memory; nothing here owns any.
// cuda.py mirrors these structures field by field: change both together.
#pragma once
#include <cuda_fp16.h>
#include <stdint.h>

namespace fused {

constexpr int BLOCK_SIZE = 16;      // positions in one block of the KV cache
constexpr int MAX_SMALL_BATCH = 16; // rows that `fused_decode` takes
constexpr int MAX_SPLITS = 8;       // thread blocks that share one head's attention
constexpr int MAX_WIDTH = 4096;     // width of the residual stream
constexpr int MAX_PRODUCTS = 4;     // matrix products of one layer

// How a matrix's weights are stored. Each format is one structure in product.cuh.
enum Format : int32_t { FORMAT_FP16 = 0 };

// One matrix of weights: `rows` numbers come out of it, `columns` go in.
struct Matrix {
  const void *values;               // in the format's own order; FP16: [rows, columns]
  int32_t rows, columns;
  int32_t format;                   // one of Format
};

struct Norm {
  const half *weight, *bias;        // [width]
};

// What becomes of a product's result. It is chosen at run time: kernels are compiled for each format and head
// size, and would multiply if they were compiled for each family too.
enum Epilogue : int32_t {
  // Rows of q, k and v (attention_width each) go to `query` and the cache, and attention follows; the rows from
  // `first_inner_row` on are the MLP's and go through its activation into `mixed`. Reads `normed`.
  EPILOGUE_PROJECT = 0,
  // Added to the residual stream, whose LayerNorm goes into `normed`. Reads `mixed`.
  EPILOGUE_ADD = 1,
};

struct Product {
  Matrix matrix;
  const half *bias;                 // of the rows from first_biased_row on, which no MLP's row comes before
  int32_t first_biased_row;
  int32_t epilogue;                 // one of Epilogue
  int32_t first_inner_row;          // EPILOGUE_PROJECT
  Norm norm;                        // EPILOGUE_ADD: of what reads the residual stream next
};

// One transformer block. GPT-J's residual is parallel, which makes it two products.
struct Layer {
  Product products[MAX_PRODUCTS];   // in the order in which they are computed
  int32_t num_products;
  half *keys, *values;              // its cache: [num_blocks, num_heads, BLOCK_SIZE, head_dim]
};

// Dimensions of the model, and what belongs to no layer. All are checked by the caller: width,
// attention_width and inner are multiples of 64, head_dim is 64, 128 or 256, rotary_dim is even and at most
// head_dim.
struct Model {
  int32_t width;                    // of the residual stream
  int32_t attention_width;          // num_heads * head_dim
  int32_t num_heads, head_dim, rotary_dim, inner, vocab;
  float epsilon;                    // of the LayerNorms
  const half *embedding;            // [vocab, width]
  const float2 *rotary;             // [positions, rotary_dim / 2]: cosine and sine
  Norm first_norm;                  // what the first layer reads
  Matrix head;                      // [vocab, width]
  const half *head_bias;            // [vocab]
};

// The tokens that one call computes, T of them. A token whose position is negative is padding: it is
// computed like any other, reads no cache and writes nothing that lasts.
struct Tokens {
  const int32_t *positions;         // [T]
  const int32_t *cache_rows;        // [T]: block * BLOCK_SIZE + position % BLOCK_SIZE
  const int32_t *history_rows;      // [T]: where in `history` the token's id is
  const int32_t *ids;               // [T]: ids that are not in `history` yet, -1 where they are; or null
  const int32_t *tables;            // [T, table_width]: each token's cache blocks, in order; decode only
  int32_t table_width;
  int64_t *history;                 // token ids; a chosen token goes behind the one it follows
};

// The prompts that one call computes, P of them.
struct Prompts {
  const int32_t *query_borders;     // [P + 1]: index of each prompt's first token; where the last one's end
  const int32_t *key_borders;       // [P + 1]: the same of their keys, in `key_rows`
  const int32_t *key_rows;          // where in the cache each key lies: block * BLOCK_SIZE + position % BLOCK_SIZE
  int32_t num_prompts;
  int32_t all_begin;                // none has any key in the cache before this pass
};

// Scratch memory. Counters are zero before a call and are zero again after it.
struct Scratch {
  float *hidden;                    // [T, width]: the residual stream
  half *normed;                     // [T, width] in some layout: its LayerNorm, which EPILOGUE_PROJECT reads
  half *query;                      // [T, attention_width]: fused_decode's
  half *projected;                  // [T, 3 attention_width + inner]: cuBLAS's result: q, k, v, fc_in
  half *mixed;                      // [T, inner + attention_width] in some layout: activation, then attention
  half *added;                      // [T, width]: cuBLAS's result
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
