// One decode step for a few rows: two kernels a block of GPT-J's, the weights read once.
//
//   embed                 hidden = embedding, normed = LayerNorm(hidden)
//   project               normed -> query, cache, activation(fc_in); attention rides along
//   add                   hidden += [fc_out | out_proj] (activation, attention), normed = next LayerNorm
//   head                  logits, and the likeliest token
//
// GPT-J's parallel residual makes two kernels possible: attention and MLP read the same LayerNorm. A family with a
// sequential residual has four products, each with one of the same two epilogues.
#pragma once
#include "attention.cuh"
#include "norm.cuh"
#include "product.cuh"

namespace fused {

enum Section { QUERY = 0, KEY = 1, VALUE = 2, INNER = 3 };

// A number that `project` computes: what is known of it before. Looked up early, because after the product nothing
// would hide the time that it takes.
struct Destination {
  int section, at;      // which Section, and which number of it
  int position, cache_row;
  float bias;
  float2 turn;          // rotary embedding: cosine and sine
};

__device__ __forceinline__ Destination look_up(const Model &model, const Product &product, const Tokens &tokens,
                                               int token, int row) {
  Destination to = {INNER, row - product.first_inner_row, __ldcg(tokens.positions + token),
                    __ldcg(tokens.cache_rows + token), 0.f, {1.f, 0.f}};
  if (to.at < 0) {
    to.section = row / model.attention_width;
    to.at = row - to.section * model.attention_width;
  }
  if (row >= product.first_biased_row) to.bias = __half2float(product.bias[row - product.first_biased_row]);
  const int in_head = to.at % model.head_dim;
  if (to.section <= KEY && in_head < model.rotary_dim && to.position >= 0)
    to.turn = model.rotary[to.position * (model.rotary_dim / 2) + in_head / 2];
  return to;
}

// Rotary embedding and cache for q, k and v, the activation for the MLP. `other` is the number that q or k is
// rotated with: the other of its pair of rows.
__device__ __forceinline__ void finish_projection(const Model &model, half *keys, half *values,
                                                  const Scratch &scratch, Layout mixed, int token,
                                                  const Destination &to, float value, float other) {
  if (to.section == INNER) {
    scratch.mixed[mixed.place(token, to.at)] = __float2half(gelu(value));
    return;
  }
  if (to.position < 0) return;
  value = to.at % 2 ? fmaf(other, to.turn.y, value * to.turn.x) : fmaf(-other, to.turn.y, value * to.turn.x);
  if (to.section == QUERY) {
    scratch.query[static_cast<int64_t>(token) * model.attention_width + to.at] = __float2half(value);
    return;
  }
  const int head = to.at / model.head_dim, in_head = to.at % model.head_dim;
  int64_t place = static_cast<int64_t>(to.cache_row / BLOCK_SIZE) * model.num_heads + head;
  place = (place * BLOCK_SIZE + to.cache_row % BLOCK_SIZE) * model.head_dim + in_head;
  (to.section == KEY ? keys : values)[place] = __float2half(value);
}

__device__ __forceinline__ AttentionRow attention_row(const Model &model, const half *keys, const half *values,
                                                      const Tokens &tokens, const Scratch &scratch,
                                                      const half *query, int64_t query_stride, Layout mixed,
                                                      int token, int head) {
  const int64_t token_head = static_cast<int64_t>(token) * model.num_heads + head;
  return {query + token * query_stride + head * model.head_dim,
          keys,
          values,
          tokens.tables + static_cast<int64_t>(token) * tokens.table_width,
          __ldcg(tokens.positions + token) + 1,
          head,
          model.num_heads,
          scratch.mixed,
          mixed,
          token,
          model.inner + head * model.head_dim,
          scratch.partial + token_head * MAX_SPLITS * (model.head_dim + 2),
          scratch.arrived_splits + token_head};
}

// One thread block a token. Lets no kernel start early: what follows may be one that does not wait.
__global__ void __launch_bounds__(THREADS)
embed(const Model model, const Tokens tokens, const Scratch scratch, const Layout normed) {
  const int token = blockIdx.x, width = model.width;
  int64_t *const place = tokens.history + tokens.history_rows[token];
  const int known = tokens.ids ? tokens.ids[token] : -1;
  if (known >= 0 && threadIdx.x == 0) *place = known;
  const half *row = model.embedding + (known >= 0 ? known : *place) * width;
  float *hidden = scratch.hidden + static_cast<int64_t>(token) * width;
  for (int i = threadIdx.x; i < width; i += THREADS) hidden[i] = __half2float(row[i]);
  __threadfence_block();
  __syncthreads();
  normalise_row(model, model.first_norm, scratch, normed, token);
}

// Thread blocks of `project`: first the tiles of q, k and v, then some of the MLP's, then attention,
// which waits for its head, then the rest of the MLP's tiles, behind which attention's latency hides. Several
// splits of one head may share a thread block: most sequences are too short for all, and idle ones cost time.
struct ProjectGrid {
  int num_qkv_tiles, num_tiles_before, num_tiles;
  int num_attention, attention_blocks_per_head;
};

constexpr int PROJECT_LOADS = 8;

template <class Weights, int TILES, int HEAD_DIM>
__global__ void __launch_bounds__(THREADS, 2)
project(const Model model, const Product product, half *keys, half *values, const Tokens tokens,
        const Scratch scratch, const ProjectGrid grid, const int num_rows) {
  const Layout mixed = {model.inner + model.attention_width, num_rows};
  __shared__ union {
    TileSums<TILES> sums;
    typename Attention<HEAD_DIM, PROJECT_LOADS>::Memory attention;
  } memory;
  let_next_kernel_start();
  const int index = blockIdx.x, attention_index = index - grid.num_tiles_before;
  if (attention_index >= 0 && attention_index < grid.num_attention) {
    const int stride = grid.attention_blocks_per_head, first_split = attention_index % stride;
    const int head = attention_index / stride % model.num_heads, token = attention_index / stride / model.num_heads;
    const AttentionRow row = attention_row(model, keys, values, tokens, scratch, scratch.query,
                                           model.attention_width, mixed, token, head);
    const int splits = num_splits(row.length, SPLIT_POSITIONS);
    if (row.length < 1 || first_split >= splits) return;
    wait_for_previous_kernel();
    wait_for_arrivals(scratch.arrived_heads + head * 8, 3 * HEAD_DIM / TILE_ROWS);
    for (int split = first_split; split < splits; split += stride) {
      Attention<HEAD_DIM, PROJECT_LOADS>::run(row, split, splits, memory.attention);
      __syncthreads();
    }
    return;
  }
  const int tile = index < grid.num_tiles_before ? index : index - grid.num_attention;
  const int first_row = tile * TILE_ROWS;
  const Weights weights(product.matrix, first_row, threadIdx.x % 32);
  const Activations x = {scratch.normed, num_rows};
  const int tile_row = threadIdx.x % TILE_ROWS, token = threadIdx.x / TILE_ROWS;
  Destination to;
  multiply_tile<Weights, TILES>(weights, product.matrix.columns, x, memory.sums, [&] {
    if (token < num_rows) to = look_up(model, product, tokens, token, first_row + tile_row);
    wait_for_previous_kernel();
    // the LayerNorms before have been computed: their counter is free for the next
    if (index == 0 && threadIdx.x == 0) *scratch.arrived = 0;
  });
  const float value = token < num_rows ? total<TILES>(memory.sums, token, tile_row) + to.bias : 0.f;
  const float other = __shfl_xor_sync(ALL_LANES, value, 1);
  if (token < num_rows) finish_projection(model, keys, values, scratch, mixed, token, to, value, other);
  if (tile < grid.num_qkv_tiles) arrive(scratch.arrived_heads + first_row % model.attention_width / HEAD_DIM * 8);
}

// The next LayerNorm, when all thread blocks have their part of the rows. One row falls to whichever is the last.
// For several the last in the order of the grid wait for the others, which have started before them.
__device__ __forceinline__ void normalise_when_all_arrived(const Model &model, const Norm &norm,
                                                           const Scratch &scratch, int num_rows) {
  const Layout normed = {model.width, num_rows};
  if (num_rows == 1) {
    if (arrive_last(scratch.arrived, gridDim.x)) normalise_row(model, norm, scratch, normed, 0);
    return;
  }
  arrive(scratch.arrived);
  const int first_row = gridDim.x - 1 - blockIdx.x;
  if (first_row >= num_rows) return;
  wait_for_arrivals(scratch.arrived, gridDim.x);
  for (int row = first_row; row < num_rows; row += gridDim.x) {
    normalise_row(model, norm, scratch, normed, row);
    __syncthreads();
  }
}

template <class Weights, int TILES>
__global__ void __launch_bounds__(THREADS, 2)
add(const Model model, const Product product, const Scratch scratch, const int num_rows) {
  __shared__ TileSums<TILES> sums;
  let_next_kernel_start();
  const int first_row = blockIdx.x * TILE_ROWS;
  const Weights weights(product.matrix, first_row, threadIdx.x % 32);
  const Activations x = {scratch.mixed, num_rows};
  const int tile_row = threadIdx.x % TILE_ROWS, token = threadIdx.x / TILE_ROWS, row = first_row + tile_row;
  float *hidden = scratch.hidden + static_cast<int64_t>(token) * model.width + row;
  float before = 0.f, bias = 0.f;
  multiply_tile<Weights, TILES>(weights, product.matrix.columns, x, sums, [&] {
    if (token < num_rows && row >= product.first_biased_row)
      bias = __half2float(product.bias[row - product.first_biased_row]);
    wait_for_previous_kernel();
    // `project` has run: its counters are free for the next layer
    if (blockIdx.x == 0)
      for (int head = threadIdx.x; head < model.num_heads; head += THREADS) scratch.arrived_heads[head * 8] = 0;
    if (token < num_rows) before = __ldcg(hidden);
  });
  if (token < num_rows) *hidden = before + total<TILES>(sums, token, tile_row) + bias;
  normalise_when_all_arrived(model, product.norm, scratch, num_rows);
}

// Put the row's likeliest token where the next step finds it.
__device__ __forceinline__ void choose(const Tokens &tokens, const Scratch &scratch, int token, uint64_t key) {
  scratch.chosen[token] = row_of_key(key);
  scratch.chosen_logit[token] = value_of_key(key);
  if (tokens.positions[token] >= 0) tokens.history[tokens.history_rows[token] + 1] = row_of_key(key);
}

template <class Weights, int TILES>
__global__ void __launch_bounds__(THREADS, 2)
head(const Model model, const Tokens tokens, const Scratch scratch, const int num_rows) {
  __shared__ TileSums<TILES> sums;
  let_next_kernel_start();
  const int first_row = blockIdx.x * TILE_ROWS;
  const Weights weights(model.head, first_row, threadIdx.x % 32);
  const Activations x = {scratch.normed, num_rows};
  const int tile_row = threadIdx.x % TILE_ROWS, token = threadIdx.x / TILE_ROWS, row = first_row + tile_row;
  float bias = 0.f;
  multiply_tile<Weights, TILES>(weights, model.head.columns, x, sums, [&] {
    if (row < model.vocab) bias = __half2float(model.head_bias[row]);
    wait_for_previous_kernel();
    if (blockIdx.x == 0 && threadIdx.x == 0) *scratch.arrived = 0; // the last LayerNorm has been computed
  });
  uint64_t key = 0;
  if (token < num_rows && row < model.vocab) {
    float logit = total<TILES>(sums, token, tile_row) + bias;
    scratch.logits[static_cast<int64_t>(token) * model.vocab + row] = logit;
    key = sort_key(logit, row);
  }
#pragma unroll
  for (int offset = TILE_ROWS / 2; offset; offset >>= 1) {
    uint64_t other = __shfl_xor_sync(ALL_LANES, key, offset);
    key = other > key ? other : key;
  }
  if (token < num_rows && tile_row == 0)
    atomicMax(reinterpret_cast<unsigned long long *>(scratch.best + token), static_cast<unsigned long long>(key));
  if (arrive_last(scratch.arrived + 1, gridDim.x) && threadIdx.x < num_rows) {
    choose(tokens, scratch, threadIdx.x, __ldcg(scratch.best + threadIdx.x));
    scratch.best[threadIdx.x] = 0;
  }
}

}  // namespace fused
