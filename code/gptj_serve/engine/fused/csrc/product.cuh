// Weights times activations for a few rows: each weight is read once, straight into registers.
//
// A thread block computes TILE_ROWS rows of the weight matrix for all rows of the batch. Its warps share the
// columns; each takes a run of steps of STEP_COLUMNS columns. In a step a lane reads 8 neighbouring numbers
// of two weight rows, `lane / 4` and that plus 8. The tensor cores' fragments want other columns in a lane,
// but a sum does not care for order as long as weights and activations are permuted alike.
//
// The order of additions depends on the number of columns alone: a row of the batch gets the same result,
// bit for bit, whatever the others are and however many there are.
#pragma once
#include "device.cuh"

namespace fused {

constexpr int TILE_ROWS = 16;
constexpr int STEP_COLUMNS = 32;
constexpr int STAGE_STEPS = 4;  // 8 loads of 16 bytes in flight a lane and stage, two stages
constexpr int TILE_COLUMNS = 8; // rows of the batch that one fragment holds

// A matrix of activations, row by row.
struct Activations {
  const half *rows;
  int64_t stride;
  int num_rows;
};

// FP16 weights in rows, as files have them. Another format is another such structure: what a lane holds of
// one step, how it is loaded, and how it becomes two runs of 8 halves.
struct HalfWeights {
  struct Step {
    uint4 upper, lower;
  };
  const uint4 *upper, *lower; // this lane's place in its two rows

  __device__ HalfWeights(const half *matrix, int num_columns, int row, int num_rows, int lane) {
    int upper_row = min(row + lane / 4, num_rows - 1), lower_row = min(row + lane / 4 + 8, num_rows - 1);
    const uint4 *first = reinterpret_cast<const uint4 *>(matrix) + lane % 4;
    upper = first + static_cast<int64_t>(upper_row) * (num_columns / 8);
    lower = first + static_cast<int64_t>(lower_row) * (num_columns / 8);
  }
  __device__ __forceinline__ Step load(int step) const {
    return {load_streaming(upper + step * 4), load_streaming(lower + step * 4)};
  }
};

#if __CUDA_ARCH__ >= 800
__device__ __forceinline__ void mma(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                    uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
#elif __CUDA_ARCH__ >= 750
__device__ __forceinline__ void mma_k8(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5},{%6},{%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a0), "r"(a1), "r"(b0));
}
__device__ __forceinline__ void mma(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                    uint32_t b0, uint32_t b1) {
  mma_k8(c, a0, a1, b0);
  mma_k8(c, a2, a3, b1);
}
#endif

// Sums of one warp: TILE_ROWS weight rows times up to TILES * TILE_COLUMNS rows of the batch.
template <int TILES>
struct Sums {
#if __CUDA_ARCH__ >= 750
  float even[TILES][4] = {}, odd[TILES][4] = {}; // two chains of products, for the latency

  __device__ __forceinline__ void add(const HalfWeights::Step &w, const Activations &x, int column, int lane) {
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
      int row = tile * TILE_COLUMNS + lane / 4;
      uint4 v = make_uint4(0, 0, 0, 0);
      if (row < x.num_rows)
        v = *reinterpret_cast<const uint4 *>(x.rows + row * x.stride + column + lane % 4 * 8);
      mma(even[tile], w.upper.x, w.lower.x, w.upper.y, w.lower.y, v.x, v.y);
      mma(odd[tile], w.upper.z, w.lower.z, w.upper.w, w.lower.w, v.z, v.w);
    }
  }
  // to sums[row of the batch][weight row]
  __device__ __forceinline__ void store(float (*sums)[TILE_ROWS], int lane) const {
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        sums[tile * TILE_COLUMNS + lane % 4 * 2 + (i & 1)][lane / 4 + (i >> 1) * 8] =
            even[tile][i] + odd[tile][i];
  }
#else  // the V100's tensor cores have another shape; its few rows are added up without them
  float sums_of_lane[2][TILES * TILE_COLUMNS] = {};

  __device__ __forceinline__ void add(const HalfWeights::Step &w, const Activations &x, int column, int lane) {
    float upper[8], lower[8], v[8];
    to_floats(w.upper, upper);
    to_floats(w.lower, lower);
#pragma unroll
    for (int row = 0; row < TILES * TILE_COLUMNS; row++) {
      if (row >= x.num_rows) break;
      to_floats(*reinterpret_cast<const uint4 *>(x.rows + row * x.stride + column + lane % 4 * 8), v);
#pragma unroll
      for (int i = 0; i < 8; i++) {
        sums_of_lane[0][row] = fmaf(upper[i], v[i], sums_of_lane[0][row]);
        sums_of_lane[1][row] = fmaf(lower[i], v[i], sums_of_lane[1][row]);
      }
    }
  }
  __device__ __forceinline__ void store(float (*sums)[TILE_ROWS], int lane) const {
#pragma unroll
    for (int row = 0; row < TILES * TILE_COLUMNS; row++)
#pragma unroll
      for (int half_tile = 0; half_tile < 2; half_tile++) {
        float v = sums_of_lane[half_tile][row];
        v += __shfl_xor_sync(ALL_LANES, v, 1);
        v += __shfl_xor_sync(ALL_LANES, v, 2);
        if (lane % 4 == 0) sums[row][lane / 4 + half_tile * 8] = v;
      }
  }
#endif
};

template <int TILES>
using TileSums = float[WARPS][TILES * TILE_COLUMNS][TILE_ROWS];

// Compute one tile. The first weights are asked for before `before_reading` is called, which has to wait for
// whatever wrote the activations. All threads must call; the sums of all warps are there afterwards.
template <int TILES, class Weights, class BeforeReading>
__device__ __forceinline__ void multiply_tile(const Weights &weights, int num_columns, const Activations &x,
                                              TileSums<TILES> &sums, BeforeReading before_reading) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, num_steps = num_columns / STEP_COLUMNS;
  const int first = warp * num_steps / WARPS, end = (warp + 1) * num_steps / WARPS;
  typename Weights::Step stages[2][STAGE_STEPS];
  auto load = [&](typename Weights::Step (&stage)[STAGE_STEPS], int from) {
#pragma unroll
    for (int i = 0; i < STAGE_STEPS; i++)
      if (from + i < end) stage[i] = weights.load(from + i);
  };
  Sums<TILES> mine;
  auto add = [&](const typename Weights::Step (&stage)[STAGE_STEPS], int from) {
#pragma unroll
    for (int i = 0; i < STAGE_STEPS; i++)
      if (from + i < end) mine.add(stage[i], x, (from + i) * STEP_COLUMNS, lane);
  };
  load(stages[0], first);
  load(stages[1], first + STAGE_STEPS);
  before_reading();
  for (int step = first; step < end; step += 2 * STAGE_STEPS) {
    add(stages[0], step);
    load(stages[0], step + 2 * STAGE_STEPS);
    add(stages[1], step + STAGE_STEPS);
    load(stages[1], step + 3 * STAGE_STEPS);
  }
  mine.store(sums[warp], lane);
  __syncthreads();
}

// One number of the tile's result: the sum over the warps.
template <int TILES>
__device__ __forceinline__ float total(const TileSums<TILES> &sums, int batch_row, int tile_row) {
  float v = 0.f;
#pragma unroll
  for (int warp = 0; warp < WARPS; warp++) v += sums[warp][batch_row][tile_row];
  return v;
}

}  // namespace fused
