// Attention of prompts over the paged cache, on tensor cores: causal, for several prompts of any lengths at once.
//
// FlashAttention's scheme: a thread block takes a tile of queries, goes over the keys that they see, and keeps a
// running softmax, so no score ever leaves the registers. What differs from the library's: keys and values come from
// the cache's blocks, where they lie, and where each prompt begins is read on the device, so that one CUDA graph
// serves prompts of any lengths. It is for short prompts and chunks, where small tiles fill the GPU; with thousands
// of tokens the library's larger tiles read the keys less often.
//
// The warps of a thread block are two groups of rows, 16 queries each, times KEY_GROUPS: of each tile of keys a warp
// takes 16 of its own. So each has a softmax of its own, and those of one row group are merged at the end.
#pragma once
#include "product.cuh"

namespace fused {

constexpr int QUERY_TILE = 32;

// Rows of HEAD_DIM halves in shared memory. The chunks of 16 bytes of a row are exchanged by its number, so that the
// same chunk of eight neighbouring rows, which a matrix takes, comes from all banks.
template <int HEAD_DIM>
struct SharedRows {
  static constexpr int CHUNKS = HEAD_DIM / 8;
  uint32_t base;

  __device__ __forceinline__ uint32_t at(int row, int chunk) const {
    return base + (row * CHUNKS + (chunk ^ (row % 8))) * 16;
  }
};

// Two tiles of keys and of values: one is computed with while the other one comes.
template <int HEAD_DIM, int KEY_GROUPS>
struct PromptMemory {
  static constexpr int THREADS = 2 * KEY_GROUPS * 32;
  static constexpr int KEY_TILE = KEY_GROUPS * 16;
  static constexpr int TILE_BYTES = KEY_TILE * HEAD_DIM * 2;
  static constexpr int BYTES = 4 * TILE_BYTES;
};

// FUSED_NO_MMA is for testing what older GPUs compute
#if __CUDA_ARCH__ >= 800 && !defined(FUSED_NO_MMA)
#define FUSED_PROMPTS

// Start a copy of 16 bytes to shared memory; zeros where `is_there` is false.
__device__ __forceinline__ void copy_async(uint32_t to, const void *from, bool is_there) {
  asm volatile("cp.async.cg.shared.global [%0],[%1],16,%2;" ::"r"(to), "l"(from), "r"(is_there ? 16 : 0) : "memory");
}
__device__ __forceinline__ void end_of_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
__device__ __forceinline__ void wait_for_all_copies_but_the_newest() {
  asm volatile("cp.async.wait_group 1;" ::: "memory");
}

// Four 8 x 8 matrices of halves; a lane gives the address of row lane % 8 of matrix lane / 8.
__device__ __forceinline__ void load_matrices(uint32_t (&m)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&m)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ uint32_t pack(float low, float high) {
  const half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t *>(&pair);
}

// The tile of queries that a thread block computes.
struct QueryTile {
  int first_token, num_queries; // of these; 0 if there is no such tile
  int first_position;           // of the first query
  int first_key;                // index in `key_rows` of the prompt's first key

  __device__ QueryTile(const Prompts &of, int tile) : num_queries(0) {
    for (int prompt = 0; prompt < of.num_prompts; prompt++) {
      // all four are asked for at once
      const int first = of.query_borders[prompt], length = of.query_borders[prompt + 1] - first;
      const int border = of.key_borders[prompt], num_keys = of.key_borders[prompt + 1] - border;
      const int num_tiles = (length + QUERY_TILE - 1) / QUERY_TILE, start = num_keys - length;
      if (tile >= num_tiles) {
        tile -= num_tiles;
        continue;
      }
      first_key = border;
      first_token = first + tile * QUERY_TILE;
      num_queries = min(length - tile * QUERY_TILE, QUERY_TILE);
      first_position = start + tile * QUERY_TILE;
      return;
    }
  }
};

// A warp's 16 queries with their running softmax. A lane has two rows of the fragments: lane / 4 and lane / 4 + 8.
template <int HEAD_DIM>
struct QueryRows {
  static constexpr int STEPS = HEAD_DIM / 16; // of the scores' product
  uint32_t queries[STEPS][4];
  float out[STEPS][2][4] = {};
  float max[2] = {-INFINITY, -INFINITY}, sum[2] = {};

  // The 16 keys from row `first` of the tile on; the tile begins at `key_position`, the queries at `position`.
  __device__ __forceinline__ void add_keys(const SharedRows<HEAD_DIM> &keys, const SharedRows<HEAD_DIM> &values,
                                           int first, int key_position, int position, int lane) {
    float scores[2][2][4] = {}; // of even and of odd steps: two chains of sums are shorter than one
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
      uint32_t k[4];
      load_matrices(k, keys.at(first + lane / 16 * 8 + lane % 8, step * 2 + lane / 8 % 2));
      const uint32_t(&q)[4] = queries[step];
      mma(scores[step % 2][0], q[0], q[1], q[2], q[3], k[0], k[1]);
      mma(scores[step % 2][1], q[0], q[1], q[2], q[3], k[2], k[3]);
    }
#pragma unroll
    for (int i = 0; i < 8; i++) scores[0][i / 4][i % 4] += scores[1][i / 4][i % 4];
    uint32_t weights[4];
    weigh(scores[0], key_position + first, position, lane, weights);
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
      uint32_t v[4];
      load_matrices_transposed(v, values.at(first + lane % 16, step * 2 + lane / 16));
      mma(out[step][0], weights[0], weights[1], weights[2], weights[3], v[0], v[1]);
      mma(out[step][1], weights[0], weights[1], weights[2], weights[3], v[2], v[3]);
    }
  }

  // Scores -> weights, as the fragment that the product with the values takes; what was added up is rescaled.
  __device__ __forceinline__ void weigh(float (&scores)[2][4], int key_position, int position, int lane,
                                        uint32_t (&weights)[4]) {
    const float scale = rsqrtf(static_cast<float>(HEAD_DIM)) * 1.4426950408889634f; // exponents of two
    const int key = key_position + lane % 4 * 2, row = position + lane / 4;
#pragma unroll
    for (int half_row = 0; half_row < 2; half_row++) {
      float largest = max[half_row];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        float &score = scores[i / 2][half_row * 2 + i % 2];
        const bool is_seen = key + i / 2 * 8 + i % 2 <= row + half_row * 8;
        score = is_seen ? score * scale : -INFINITY;
        largest = fmaxf(largest, score);
      }
      largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 2));
      // nothing may have been seen yet
      const float zero = largest == -INFINITY ? 0.f : largest, rescale = exp2f(max[half_row] - zero);
      max[half_row] = largest;
      sum[half_row] *= rescale;
#pragma unroll
      for (int i = 0; i < 4; i++) {
        float &score = scores[i / 2][half_row * 2 + i % 2];
        score = exp2f(score - zero);
        sum[half_row] += score;
      }
      weights[half_row] = pack(scores[0][half_row * 2], scores[0][half_row * 2 + 1]);
      weights[half_row + 2] = pack(scores[1][half_row * 2], scores[1][half_row * 2 + 1]);
#pragma unroll
      for (int i = 0; i < STEPS * 4; i++) out[i / 4][i / 2 % 2][half_row * 2 + i % 2] *= rescale;
    }
  }

  // A row's two neighbouring numbers of `column`'s eight, as the lanes hold them.
  __device__ __forceinline__ float2 pair(int half_row, int column) const {
    const float(&four)[4] = out[column / 2][column % 2];
    return make_float2(four[half_row * 2], four[half_row * 2 + 1]);
  }

  // Give these rows' numbers to the warp that merges them.
  __device__ __forceinline__ void hand_over(float *values, float *maxima, float *sums, int lane) const {
#pragma unroll
    for (int half_row = 0; half_row < 2; half_row++) {
      const int row = lane / 4 + half_row * 8;
      if (lane % 4 == 0) {
        maxima[row] = max[half_row];
        sums[row] = sum[half_row];
      }
#pragma unroll
      for (int column = 0; column < HEAD_DIM / 8; column++)
        *reinterpret_cast<float2 *>(values + row * HEAD_DIM + column * 8 + lane % 4 * 2) = pair(half_row, column);
    }
  }

  // Add what another warp has of the same rows.
  __device__ __forceinline__ void take(const float *values, const float *maxima, const float *sums, int lane) {
#pragma unroll
    for (int half_row = 0; half_row < 2; half_row++) {
      const int row = lane / 4 + half_row * 8;
      // every query sees its prompt's first key, which is this warp's: its largest score is a number
      const float largest = fmaxf(max[half_row], maxima[row]);
      const float scale = exp2f(max[half_row] - largest), other_scale = exp2f(maxima[row] - largest);
      max[half_row] = largest;
      sum[half_row] = sum[half_row] * scale + sums[row] * other_scale;
#pragma unroll
      for (int column = 0; column < HEAD_DIM / 8; column++) {
        const float2 other = *reinterpret_cast<const float2 *>(values + row * HEAD_DIM + column * 8 + lane % 4 * 2);
        float(&four)[4] = out[column / 2][column % 2];
        four[half_row * 2] = four[half_row * 2] * scale + other.x * other_scale;
        four[half_row * 2 + 1] = four[half_row * 2 + 1] * scale + other.y * other_scale;
      }
    }
  }
};

// A tile of keys and values on its way to shared memory.
template <int HEAD_DIM, int KEY_GROUPS>
struct TileCopy {
  using Memory = PromptMemory<HEAD_DIM, KEY_GROUPS>;
  static constexpr int CHUNKS = SharedRows<HEAD_DIM>::CHUNKS, ROWS = Memory::THREADS / CHUNKS;
  int rows[(Memory::KEY_TILE + 31) / 32]; // where in the cache the tile's keys lie, one a lane

  // Look the places up, some time before `start`: the two wait for the memory one after the other.
  __device__ __forceinline__ void look_up(const int32_t *key_rows, int first, int num_keys) {
#pragma unroll
    for (int i = 0; i < sizeof(rows) / sizeof(int); i++) {
      const int key = first + i * 32 + threadIdx.x % 32;
      rows[i] = key < num_keys ? key_rows[key] : 0;
    }
  }

  // What lies behind the last key is filled with zeros: it may be anything, and NaN times zero is NaN.
  __device__ __forceinline__ void start(const SharedRows<HEAD_DIM> &to, const half *from, int num_heads, int head,
                                        int num_left) const {
    const int chunk = threadIdx.x % CHUNKS;
#pragma unroll
    for (int i = 0; i < Memory::KEY_TILE / ROWS; i++) {
      const int key = i * ROWS + threadIdx.x / CHUNKS;
      const int place = __shfl_sync(ALL_LANES, rows[i * ROWS / 32], key % 32);
      const int64_t block = static_cast<int64_t>(place / BLOCK_SIZE) * num_heads + head;
      const half *address = from + (block * BLOCK_SIZE + place % BLOCK_SIZE) * HEAD_DIM + chunk * 8;
      copy_async(to.at(key, chunk), address, key < num_left);
    }
  }
};
#endif

// Grid: enough tiles for all prompts, heads. Reads q of `projected`, writes attention's part of `mixed`, plain rows.
template <int HEAD_DIM, int KEY_GROUPS>
__global__ void __launch_bounds__(PromptMemory<HEAD_DIM, KEY_GROUPS>::THREADS)
attend_prompts(const Model model, const half *keys, const half *values, const Prompts prompts, const half *projected,
               half *mixed) {
#ifdef FUSED_PROMPTS
  using Memory = PromptMemory<HEAD_DIM, KEY_GROUPS>;
  using Rows = SharedRows<HEAD_DIM>;
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ float maxima[KEY_GROUPS][QUERY_TILE], sums[KEY_GROUPS][QUERY_TILE];
  // Where everything lies was there before the step: it is looked up while the kernel before still runs.
  const QueryTile tile(prompts, blockIdx.x);
  if (tile.num_queries == 0) return;
  const int head = blockIdx.y, lane = threadIdx.x % 32, warp = threadIdx.x / 32, key_group = warp % KEY_GROUPS;
  const int first_row = warp / KEY_GROUPS * 16;
  const int num_keys = tile.first_position + tile.num_queries; // that the last query sees
  const int32_t *key_rows = prompts.key_rows + tile.first_key;
  const uint32_t memory = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  auto keys_of = [&](int stage) { return Rows{memory + stage * 2 * Memory::TILE_BYTES}; };
  auto values_of = [&](int stage) { return Rows{memory + (stage * 2 + 1) * Memory::TILE_BYTES}; };

  TileCopy<HEAD_DIM, KEY_GROUPS> copy;
  copy.look_up(key_rows, 0, num_keys);
  wait_for_previous_kernel();
  // The queries pass through the second stage, which is needed later.
  const int64_t query_stride = 3 * static_cast<int64_t>(model.attention_width) + model.inner;
  for (int i = threadIdx.x; i < QUERY_TILE * Rows::CHUNKS; i += Memory::THREADS) {
    const int row = i / Rows::CHUNKS, chunk = i % Rows::CHUNKS;
    const half *from = projected + (tile.first_token + row) * query_stride + head * HEAD_DIM + chunk * 8;
    copy_async(keys_of(1).at(row, chunk), from, row < tile.num_queries);
  }
  end_of_copies();
  copy.start(keys_of(0), keys, model.num_heads, head, num_keys);
  copy.start(values_of(0), values, model.num_heads, head, num_keys);
  end_of_copies();
  copy.look_up(key_rows, Memory::KEY_TILE, num_keys);
  wait_for_all_copies_but_the_newest();
  __syncthreads();
  QueryRows<HEAD_DIM> mine;
#pragma unroll
  for (int step = 0; step < QueryRows<HEAD_DIM>::STEPS; step++)
    load_matrices(mine.queries[step], keys_of(1).at(first_row + lane % 16, step * 2 + lane / 16));
  __syncthreads();

  for (int first = 0, stage = 0; first < num_keys; first += Memory::KEY_TILE, stage ^= 1) {
    const int next = first + Memory::KEY_TILE;
    if (next < num_keys) {
      copy.start(keys_of(stage ^ 1), keys, model.num_heads, head, num_keys - next);
      copy.start(values_of(stage ^ 1), values, model.num_heads, head, num_keys - next);
    }
    end_of_copies();
    copy.look_up(key_rows, next + Memory::KEY_TILE, num_keys);
    wait_for_all_copies_but_the_newest();
    __syncthreads();
    mine.add_keys(keys_of(stage), values_of(stage), key_group * 16, first, tile.first_position + first_row, lane);
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 4; i++) mine.sum[i / 2] += __shfl_xor_sync(ALL_LANES, mine.sum[i / 2], 1 + i % 2);

  float *handed = reinterpret_cast<float *>(shared);
  auto place = [&](int group) { return handed + (group * QUERY_TILE + first_row) * HEAD_DIM; };
  if (key_group) mine.hand_over(place(key_group - 1), maxima[key_group] + first_row, sums[key_group] + first_row, lane);
  __syncthreads();
  if (key_group) return;
#pragma unroll 1
  for (int group = 1; group < KEY_GROUPS; group++)
    mine.take(place(group - 1), maxima[group] + first_row, sums[group] + first_row, lane);
#pragma unroll
  for (int half_row = 0; half_row < 2; half_row++) {
    const int query = first_row + lane / 4 + half_row * 8;
    if (query >= tile.num_queries) continue;
    const float whole = 1.f / mine.sum[half_row];
    const int64_t row = tile.first_token + query;
    half *to = mixed + row * (model.inner + model.attention_width) + model.inner + head * HEAD_DIM + lane % 4 * 2;
#pragma unroll
    for (int column = 0; column < HEAD_DIM / 8; column++) {
      const float2 values = mine.pair(half_row, column);
      *reinterpret_cast<half2 *>(to + column * 8) = __floats2half2_rn(values.x * whole, values.y * whole);
    }
  }
#endif
}

}  // namespace fused
