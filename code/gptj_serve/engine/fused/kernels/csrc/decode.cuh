// One decode step for a few rows: two kernels a block, the weights read once.
//
//   embed                 hidden = embedding, normed = LayerNorm(hidden)
//   in_projection         normed -> query, cache, gelu(fc_in); attention rides along
//   out_projection        hidden += [fc_out | out_proj] (gelu, attention), normed = next LayerNorm
//   head                  logits, and the likeliest token
//
// The parallel residual of GPT-J makes that possible: attention and MLP read the same LayerNorm.
#pragma once
#include "attention.cuh"
#include "norm.cuh"
#include "product.cuh"

namespace fused {

// A number of the in-projection: what is known of it before it is computed. Looked up early, because after
// the product nothing would hide the time that it takes.
struct InPlace {
  int section, at;      // q, k, v or fc_in, and which number of it
  int position, cache_row;
  float bias;           // fc_in's
  float2 turn;          // rotary embedding: cosine and sine
};

__device__ __forceinline__ InPlace look_up(const Model &model, const Tokens &tokens, int layer, int token, int row) {
  InPlace place = {min(row / model.d, 3), 0, __ldcg(tokens.positions + token), __ldcg(tokens.cache_rows + token), 0.f,
                   {1.f, 0.f}};
  place.at = row - place.section * model.d;
  if (place.section == 3)
    place.bias = __half2float(model.in_bias[static_cast<int64_t>(layer) * model.inner + place.at]);
  const int in_head = place.at % model.head_dim;
  if (place.section < 2 && in_head < model.rotary_dim && place.position >= 0)
    place.turn = model.rotary[place.position * (model.rotary_dim / 2) + in_head / 2];
  return place;
}

// Where it goes: rotary embedding and cache for q, k and v, gelu for the MLP. `other` is the number that q or k
// is rotated with: the other of its pair of rows.
__device__ __forceinline__ void finish_in(const Model &model, const Cache &cache, const Scratch &scratch,
                                          Layout mixed, int layer, int token, const InPlace &place, float value,
                                          float other) {
  const int d = model.d;
  if (place.section == 3) {
    scratch.mixed[mixed.place(token, place.at)] = __float2half(gelu(value + place.bias));
    return;
  }
  if (place.position < 0) return;
  const float2 turn = place.turn;
  value = place.at % 2 ? fmaf(other, turn.y, value * turn.x) : fmaf(-other, turn.y, value * turn.x);
  if (place.section == 0) {
    scratch.query[static_cast<int64_t>(token) * d + place.at] = __float2half(value);
    return;
  }
  const int head = place.at / model.head_dim, in_head = place.at % model.head_dim;
  int64_t to = static_cast<int64_t>(place.cache_row / BLOCK_SIZE) * model.num_heads + head;
  to = (to * BLOCK_SIZE + place.cache_row % BLOCK_SIZE) * model.head_dim + in_head;
  (place.section == 1 ? cache.keys : cache.values)[layer * cache.layer_stride + to] = __float2half(value);
}

__device__ __forceinline__ AttentionRow attention_row(const Model &model, const Cache &cache, const Tokens &tokens,
                                                      const Scratch &scratch, const half *query, int64_t query_stride,
                                                      Layout mixed, int layer, int token, int head) {
  const int64_t token_head = static_cast<int64_t>(token) * model.num_heads + head;
  return {query + token * query_stride + head * model.head_dim,
          cache.keys + layer * cache.layer_stride,
          cache.values + layer * cache.layer_stride,
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
  const int token = blockIdx.x, d = model.d;
  const half *row = model.embedding + tokens.history[tokens.history_rows[token]] * d;
  float *hidden = scratch.hidden + static_cast<int64_t>(token) * d;
  for (int i = threadIdx.x; i < d; i += THREADS) hidden[i] = __half2float(row[i]);
  __threadfence_block();
  __syncthreads();
  normalise_row(model, scratch, normed, token, 0);
}

// Thread blocks of the in-projection: first the tiles of q, k and v, then most of the MLP's, then attention,
// which waits for its head, then the rest of the MLP's tiles, behind which attention's latency hides. Several
// splits of one head may share a thread block: most sequences are too short for all, and idle ones cost time.
struct InGrid {
  int num_qkv_tiles, num_tiles_before, num_tiles;
  int num_attention, attention_blocks_per_head;
};

template <int TILES, int HEAD_DIM>
__global__ void __launch_bounds__(THREADS, 2)
in_projection(const Model model, const Cache cache, const Tokens tokens, const Scratch scratch, const InGrid grid,
              const int num_rows, const int layer) {
  const Layout mixed = {model.inner + model.d, num_rows};
  __shared__ union {
    TileSums<TILES> sums;
    typename Attention<HEAD_DIM>::Memory attention;
  } memory;
  let_next_kernel_start();
  const int index = blockIdx.x, attention_index = index - grid.num_tiles_before;
  if (attention_index >= 0 && attention_index < grid.num_attention) {
    const int stride = grid.attention_blocks_per_head, first_split = attention_index % stride;
    const int head = attention_index / stride % model.num_heads, token = attention_index / stride / model.num_heads;
    const AttentionRow row = attention_row(model, cache, tokens, scratch, scratch.query, model.d, mixed, layer,
                                           token, head);
    const int splits = num_splits(row.length, SPLIT_POSITIONS);
    if (row.length < 1 || first_split >= splits) return;
    wait_for_previous_kernel();
    wait_for_arrivals(scratch.arrived_heads + head * 8, 3 * HEAD_DIM / TILE_ROWS);
    for (int split = first_split; split < splits; split += stride) {
      Attention<HEAD_DIM>::run(row, split, splits, memory.attention);
      __syncthreads();
    }
    return;
  }
  const int tile = index < grid.num_tiles_before ? index : index - grid.num_attention;
  const int first_row = tile * TILE_ROWS, num_weight_rows = grid.num_tiles * TILE_ROWS;
  const HalfWeights weights(model.in_weight + static_cast<int64_t>(layer) * num_weight_rows * model.d, model.d,
                            first_row, num_weight_rows, threadIdx.x % 32);
  const Activations x = {scratch.normed, num_rows};
  const int tile_row = threadIdx.x % TILE_ROWS, token = threadIdx.x / TILE_ROWS;
  InPlace place;
  multiply_tile<TILES>(weights, model.d, x, memory.sums, [&] {
    if (token < num_rows) place = look_up(model, tokens, layer, token, first_row + tile_row);
    wait_for_previous_kernel();
    // the LayerNorms before have been computed: their counter is free for the next
    if (index == 0 && threadIdx.x == 0) *scratch.arrived = 0;
  });
  const float value = token < num_rows ? total<TILES>(memory.sums, token, tile_row) : 0.f;
  const float other = __shfl_xor_sync(ALL_LANES, value, 1);
  if (token < num_rows)
    finish_in(model, cache, scratch, mixed, layer, token, place, value, other);
  if (tile < grid.num_qkv_tiles) arrive(scratch.arrived_heads + first_row % model.d / HEAD_DIM * 8);
}

// The next LayerNorm, when all thread blocks have their part of the rows. One row falls to whichever is the last.
// For several the last in the order of the grid wait for the others, which have started before them.
__device__ __forceinline__ void normalise_when_all_arrived(const Model &model, const Scratch &scratch, int num_rows,
                                                           int layer) {
  const Layout normed = {model.d, num_rows};
  if (num_rows == 1) {
    if (arrive_last(scratch.arrived, gridDim.x)) normalise_row(model, scratch, normed, 0, layer);
    return;
  }
  arrive(scratch.arrived);
  const int first_row = gridDim.x - 1 - blockIdx.x;
  if (first_row >= num_rows) return;
  wait_for_arrivals(scratch.arrived, gridDim.x);
  for (int row = first_row; row < num_rows; row += gridDim.x) {
    normalise_row(model, scratch, normed, row, layer);
    __syncthreads();
  }
}

template <int TILES>
__global__ void __launch_bounds__(THREADS, 2)
out_projection(const Model model, const Scratch scratch, const int num_rows, const int layer) {
  __shared__ TileSums<TILES> sums;
  let_next_kernel_start();
  const int d = model.d, num_columns = model.inner + d, first_row = blockIdx.x * TILE_ROWS;
  const HalfWeights weights(model.out_weight + static_cast<int64_t>(layer) * d * num_columns, num_columns, first_row,
                            d, threadIdx.x % 32);
  const Activations x = {scratch.mixed, num_rows};
  const int tile_row = threadIdx.x % TILE_ROWS, token = threadIdx.x / TILE_ROWS;
  float *hidden = scratch.hidden + static_cast<int64_t>(token) * d + first_row + tile_row;
  float before = 0.f, bias = 0.f;
  multiply_tile<TILES>(weights, num_columns, x, sums, [&] {
    if (token < num_rows)
      bias = __half2float(model.out_bias[static_cast<int64_t>(layer) * d + first_row + tile_row]);
    wait_for_previous_kernel();
    // the in-projection has run: its counters are free for the next layer
    if (blockIdx.x == 0)
      for (int head = threadIdx.x; head < model.num_heads; head += THREADS) scratch.arrived_heads[head * 8] = 0;
    if (token < num_rows) before = __ldcg(hidden);
  });
  if (token < num_rows) *hidden = before + total<TILES>(sums, token, tile_row) + bias;
  normalise_when_all_arrived(model, scratch, num_rows, layer + 1);
}

// Put the row's likeliest token where the next step finds it.
__device__ __forceinline__ void choose(const Tokens &tokens, const Scratch &scratch, int token, uint64_t key) {
  scratch.chosen[token] = row_of_key(key);
  scratch.chosen_logit[token] = value_of_key(key);
  if (tokens.positions[token] >= 0) tokens.history[tokens.history_rows[token] + 1] = row_of_key(key);
}

template <int TILES>
__global__ void __launch_bounds__(THREADS, 2)
head(const Model model, const Tokens tokens, const Scratch scratch, const int num_rows) {
  __shared__ TileSums<TILES> sums;
  let_next_kernel_start();
  const int first_row = blockIdx.x * TILE_ROWS;
  const HalfWeights weights(model.head_weight, model.d, first_row, model.vocab, threadIdx.x % 32);
  const Activations x = {scratch.normed, num_rows};
  const int tile_row = threadIdx.x % TILE_ROWS, token = threadIdx.x / TILE_ROWS, row = first_row + tile_row;
  float bias = 0.f;
  multiply_tile<TILES>(weights, model.d, x, sums, [&] {
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
