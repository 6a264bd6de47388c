// Attention of one token over its paged cache: one head, shared by up to MAX_SPLITS thread blocks.
//
// HEAD_DIM / 8 lanes hold one position, 8 numbers each; a warp reads 8 loads' worth of positions at once. Each
// group of lanes keeps a running softmax in float32; groups, warps and thread blocks are merged at the end.
// The number of splits depends on the sequence's length alone, so the result does not change with the batch;
// large batches, which have thread blocks enough without, take longer splits.
#pragma once
#include "device.cuh"
#include "fused.h"
#include "layout.cuh"

namespace fused {

constexpr int SPLIT_POSITIONS = 128; // a thread block more for each so many
constexpr int LONG_SPLIT_POSITIONS = 512;

__device__ inline int num_splits(int length, int split_positions) {
  return min((length + split_positions - 1) / split_positions, MAX_SPLITS);
}

struct AttentionRow {
  const half *query;       // [head_dim]
  const half *keys;        // this layer's
  const half *values;      // this layer's
  const int32_t *table;    // the sequence's blocks
  int length;              // positions to attend to
  int head, num_heads;
  half *out;               // activations, of which this head's get [head_dim]
  Layout out_layout;
  int out_row, out_column;
  float *partial;          // [MAX_SPLITS, head_dim + 2]
  uint32_t *arrived;       // counter

  __device__ __forceinline__ void put(int at, float value) const {
    out[out_layout.place(out_row, out_column + at)] = __float2half(value);
  }
};

// A softmax that is not finished: the largest score, the sum of exponentials and the weighted values.
struct Running {
  float max = -INFINITY, sum = 0.f, values[8] = {};
};

// LOADS keys, and as many values, are under way at once for each lane. More of them cost registers, and with those
// thread blocks of a multiprocessor: where attention has a kernel of its own, many thread blocks with few loads are
// faster; beside a product, whose registers are taken in any case, it is the other way round.
template <int HEAD_DIM, int LOADS>
struct Attention {
  static constexpr int LANES = HEAD_DIM / 8;           // of one position
  static constexpr int GROUPS = 32 / LANES;            // positions that one load of a warp covers
  static constexpr int POSITIONS = LOADS * GROUPS;     // that a warp takes at once
  static constexpr int BLOCKS = (POSITIONS + BLOCK_SIZE - 1) / BLOCK_SIZE;
  static constexpr int NUM_GROUPS = WARPS * GROUPS;
  static constexpr int PARTIAL = HEAD_DIM + 2;

  struct Memory {
    float values[NUM_GROUPS][HEAD_DIM];
    float max[NUM_GROUPS], sum[NUM_GROUPS];
  };

  // Take in the positions from `first` on, which is a multiple of POSITIONS.
  static __device__ __forceinline__ void add_positions(const AttentionRow &row, const float (&query)[8], int first,
                                                       Running &state) {
    const int lane = threadIdx.x % 32, group = lane / LANES;
    int64_t block[BLOCKS];
#pragma unroll
    for (int i = 0; i < BLOCKS; i++) {
      int index = min(first / BLOCK_SIZE + i, (row.length - 1) / BLOCK_SIZE);
      block[i] = (static_cast<int64_t>(row.table[index]) * row.num_heads + row.head) * BLOCK_SIZE;
    }
    uint4 keys[LOADS], values[LOADS];
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
      int64_t at = block[i * GROUPS / BLOCK_SIZE] + (first + i * GROUPS + group) % BLOCK_SIZE;
      at = at * HEAD_DIM + lane % LANES * 8;
      keys[i] = load_shared_by_blocks(row.keys + at);
      values[i] = load_shared_by_blocks(row.values + at);
    }
    float scores[LOADS], largest = state.max;
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
      float k[8], score = 0.f;
      to_floats(keys[i], k);
#pragma unroll
      for (int j = 0; j < 8; j++) score = fmaf(k[j], query[j], score);
#pragma unroll
      for (int offset = LANES / 2; offset; offset >>= 1) score += __shfl_xor_sync(ALL_LANES, score, offset);
      scores[i] = first + i * GROUPS + group < row.length ? score : -INFINITY;
      largest = fmaxf(largest, scores[i]);
    }
    // a group of lanes may have had no position yet
    const float rescale = largest == -INFINITY ? 1.f : __expf(state.max - largest);
    state.max = largest;
    state.sum *= rescale;
#pragma unroll
    for (int j = 0; j < 8; j++) state.values[j] *= rescale;
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
      // what lies behind the end may be anything, NaN included: skipped, not multiplied by zero
      if (scores[i] == -INFINITY) continue;
      float weight = __expf(scores[i] - largest), v[8];
      state.sum += weight;
      to_floats(values[i], v);
#pragma unroll
      for (int j = 0; j < 8; j++) state.values[j] = fmaf(weight, v[j], state.values[j]);
    }
  }

  // All threads of a thread block must call, with the same row and split < splits.
  static __device__ __forceinline__ void run(const AttentionRow &row, int split, int splits, Memory &memory) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float query[8];
    to_floats(load_shared_by_blocks(row.query + lane % LANES * 8), query);
#pragma unroll
    for (int j = 0; j < 8; j++) query[j] *= rsqrtf(static_cast<float>(HEAD_DIM));
    Running state;
    for (int first = (warp * splits + split) * POSITIONS; first < row.length; first += WARPS * splits * POSITIONS)
      add_positions(row, query, first, state);
    const int group = warp * GROUPS + lane / LANES;
#pragma unroll
    for (int j = 0; j < 8; j++) memory.values[group][lane % LANES * 8 + j] = state.values[j];
    if (lane % LANES == 0) {
      memory.max[group] = state.max;
      memory.sum[group] = state.sum;
    }
    __syncthreads();
    merge_groups(row, split, splits, memory);
  }

  static __device__ __forceinline__ void merge_groups(const AttentionRow &row, int split, int splits, Memory &memory) {
    float *partial = row.partial + split * PARTIAL;
    if (threadIdx.x < HEAD_DIM) {
      float max = -INFINITY, sum = 0.f, value = 0.f;
#pragma unroll
      for (int i = 0; i < NUM_GROUPS; i++) max = fmaxf(max, memory.max[i]);
#pragma unroll
      for (int i = 0; i < NUM_GROUPS; i++) {
        float scale = __expf(memory.max[i] - max);
        sum = fmaf(scale, memory.sum[i], sum);
        value = fmaf(scale, memory.values[i][threadIdx.x], value);
      }
      if (splits == 1) {
        row.put(threadIdx.x, value / sum);
        return;
      }
      partial[threadIdx.x] = value;
      if (threadIdx.x == 0) {
        partial[HEAD_DIM] = max;
        partial[HEAD_DIM + 1] = sum;
      }
    }
    if (splits > 1 && arrive_last(row.arrived, splits)) merge_splits(row, splits);
  }

  static __device__ __forceinline__ void merge_splits(const AttentionRow &row, int splits) {
    if (threadIdx.x >= HEAD_DIM) return;
    float max = -INFINITY, sum = 0.f, value = 0.f;
    for (int i = 0; i < splits; i++) max = fmaxf(max, __ldcg(row.partial + i * PARTIAL + HEAD_DIM));
    for (int i = 0; i < splits; i++) {
      const float *partial = row.partial + i * PARTIAL;
      float scale = __expf(__ldcg(partial + HEAD_DIM) - max);
      sum = fmaf(scale, __ldcg(partial + HEAD_DIM + 1), sum);
      value = fmaf(scale, __ldcg(partial + threadIdx.x), value);
    }
    row.put(threadIdx.x, value / sum);
  }
};

}  // namespace fused
