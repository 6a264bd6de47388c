// Weights times activations for a few rows: each weight is read once, straight into registers.
//
// A thread block computes TILE_ROWS rows of the weight matrix for all rows of the batch; its warps share the
// columns. In a step of 64 columns a load of a warp takes whole lines of 128 bytes from four weight
// rows, eight lanes a row: the tensor cores' fragments want four lanes a row, which would be half lines of
// eight rows. So a fragment's row `lane / 4` holds weight row `lane / 8`, the left
// half of the step's columns in even rows and the right half in odd ones. Each fragment is multiplied with
// the activations of both halves; even rows of the first product and odd rows of the second are kept, and
// added at the end. The other halves of the products are waste, which costs nothing next to the memory.
//
// The order of additions depends on the number of columns alone: a row of the batch gets the same result,
// bit for bit, whatever the others are and however many there are.
#pragma once
#include "device.cuh"
#include "fused.h"
#include "layout.cuh"

namespace fused {

constexpr int TILE_ROWS = 16;
constexpr int TILE_COLUMNS = 8; // rows of the batch that one fragment holds
constexpr int LOADS_PER_STEP = 4;

// A matrix of activations, 32 columns of all rows together as layout.cuh has them.
struct Activations {
  const half *values;
  int num_rows;
};

// A format of weights is one structure: what a lane holds of one step (a Step), how that is loaded, and how
// many columns a step has.
//
// FP16 weights lie in rows, as files have them: prompts use the same copy through cuBLAS.
struct Fp16 {
  static constexpr int STEP_COLUMNS = 64;
  struct Step {
    uint4 rows[LOADS_PER_STEP]; // weight rows lane / 8 + 0, 4, 8 and 12
  };
  const uint4 *rows[LOADS_PER_STEP];

  __device__ Fp16(const Matrix &matrix, int first_row, int lane) {
    const half *values = static_cast<const half *>(matrix.values);
#pragma unroll
    for (int i = 0; i < LOADS_PER_STEP; i++) {
      int row = min(first_row + i * 4 + lane / 8, matrix.rows - 1);
      rows[i] = reinterpret_cast<const uint4 *>(values + static_cast<int64_t>(row) * matrix.columns) + lane % 8;
    }
  }
  __device__ __forceinline__ Step load(int step) const {
    Step loaded;
#pragma unroll
    for (int i = 0; i < LOADS_PER_STEP; i++) loaded.rows[i] = load_streaming(rows[i] + step * 8);
    return loaded;
  }
};

// FUSED_NO_MMA: for testing on any GPU what runs on those without such tensor cores
#if __CUDA_ARCH__ >= 750 && !defined(FUSED_NO_MMA)
#define FUSED_MMA
#endif

#if defined(FUSED_MMA) && __CUDA_ARCH__ >= 800
__device__ __forceinline__ void mma(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                    uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
#elif defined(FUSED_MMA)
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

// What one warp adds up: TILE_ROWS weight rows times up to TILES * TILE_COLUMNS rows of the batch.
template <class Weights, int TILES>
struct Sums;

template <int TILES>
using TileSums = float[WARPS][TILES * TILE_COLUMNS][TILE_ROWS];

#ifdef FUSED_MMA
template <int TILES>
struct Sums<Fp16, TILES> {
  struct Inputs {
    uint4 halves[2][TILES]; // a lane's 8 activations of the left and of the right half of a step
  };
  float sums[2][2][TILES][4] = {}; // upper and lower 8 weight rows, halves of the columns

  static __device__ __forceinline__ Inputs load(const Activations &x, int column, int lane) {
    Inputs loaded;
#pragma unroll
    for (int half_step = 0; half_step < 2; half_step++)
#pragma unroll
      for (int tile = 0; tile < TILES; tile++) {
        const int row = tile * TILE_COLUMNS + lane / 4;
        // a row's 32 columns are four lanes' numbers
        const int group = (column / LAYOUT_COLUMNS + half_step) * x.num_rows * LAYOUT_COLUMNS;
        const half *from = x.values + group + tile * TILE_COLUMNS * LAYOUT_COLUMNS + lane * 8;
        loaded.halves[half_step][tile] =
            row < x.num_rows ? *reinterpret_cast<const uint4 *>(from) : make_uint4(0, 0, 0, 0);
      }
    return loaded;
  }
  __device__ __forceinline__ void add(const Fp16::Step &weights, const Inputs &x) {
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
      for (int part = 0; part < 2; part++)
#pragma unroll
        for (int half_step = 0; half_step < 2; half_step++) {
          const uint4 &upper = weights.rows[2 * part], &lower = weights.rows[2 * part + 1];
          const uint4 &v = x.halves[half_step][tile];
          mma(sums[part][half_step][tile], upper.x, lower.x, upper.y, lower.y, v.x, v.y);
          mma(sums[part][half_step][tile], upper.z, lower.z, upper.w, lower.w, v.z, v.w);
        }
  }
  // to all[row of the batch][weight row]
  __device__ __forceinline__ void store(float (*all)[TILE_ROWS], int lane) const {
    const bool is_odd = lane / 4 % 2;
#pragma unroll
    for (int part = 0; part < 2; part++)
#pragma unroll
      for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          float v = is_odd ? sums[part][1][tile][i] : sums[part][0][tile][i];
          v += __shfl_xor_sync(ALL_LANES, v, 4);
          if (!is_odd) all[tile * TILE_COLUMNS + lane % 4 * 2 + i % 2][part * 8 + i / 2 * 4 + lane / 8] = v;
        }
  }
};
#else
// The V100's tensor cores have another shape: its few rows are added up without them.
template <int TILES>
struct Sums<Fp16, TILES> {
  struct Inputs {
    const half *from;
    int num_rows;
  };
  float sums[LOADS_PER_STEP][TILES * TILE_COLUMNS] = {};

  static __device__ __forceinline__ Inputs load(const Activations &x, int column, int lane) {
    const Layout layout = {0, x.num_rows};
    return {x.values + layout.place(0, column + lane % 8 * 8), x.num_rows};
  }
  __device__ __forceinline__ void add(const Fp16::Step &weights, const Inputs &x) {
    float w[LOADS_PER_STEP][8], v[8];
#pragma unroll
    for (int i = 0; i < LOADS_PER_STEP; i++) to_floats(weights.rows[i], w[i]);
#pragma unroll
    for (int row = 0; row < TILES * TILE_COLUMNS; row++) {
      if (row >= x.num_rows) break;
      to_floats(*reinterpret_cast<const uint4 *>(x.from + row * LAYOUT_COLUMNS), v);
#pragma unroll
      for (int i = 0; i < LOADS_PER_STEP; i++)
#pragma unroll
        for (int j = 0; j < 8; j++) sums[i][row] = fmaf(w[i][j], v[j], sums[i][row]);
    }
  }
  __device__ __forceinline__ void store(float (*all)[TILE_ROWS], int lane) const {
#pragma unroll
    for (int row = 0; row < TILES * TILE_COLUMNS; row++)
#pragma unroll
      for (int i = 0; i < LOADS_PER_STEP; i++) {
        float v = sums[i][row];
#pragma unroll
        for (int offset = 4; offset; offset >>= 1) v += __shfl_xor_sync(ALL_LANES, v, offset);
        if (lane % 8 == 0) all[row][i * 4 + lane / 8] = v;
      }
  }
};
#endif

// Steps that a warp has asked for and not yet multiplied, weights and activations alike: they have to cover the time
// that the memory takes to answer, and they take registers. On an H200, whose memory is the fastest, a third one made
// a decode step of 1 to 8 rows 1 to 2 % shorter; with the activations of 16 rows there are no registers for it.
template <int TILES>
__device__ constexpr int steps_in_flight() {
#if __CUDA_ARCH__ >= 900
  return TILES == 1 ? 3 : 2;
#else
  return 2;
#endif
}

// Compute one tile. The first weights are asked for before `before_reading` is called, which has to wait for
// whatever wrote the activations. All threads must call; the sums of all warps are there afterwards.
template <class Weights, int TILES, class BeforeReading>
__device__ __forceinline__ void multiply_tile(const Weights &weights, int num_columns, const Activations &x,
                                              TileSums<TILES> &sums, BeforeReading before_reading) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, num_steps = num_columns / Weights::STEP_COLUMNS;
  const int first = warp * num_steps / WARPS, end = (warp + 1) * num_steps / WARPS;
  constexpr int IN_FLIGHT = steps_in_flight<TILES>();
  typename Weights::Step w[IN_FLIGHT];
  typename Sums<Weights, TILES>::Inputs inputs[IN_FLIGHT];
  Sums<Weights, TILES> mine;
  auto load_inputs = [&](int step) { return Sums<Weights, TILES>::load(x, step * Weights::STEP_COLUMNS, lane); };
#pragma unroll
  for (int i = 0; i < IN_FLIGHT; i++)
    if (first + i < end) w[i] = weights.load(first + i);
  before_reading();
#pragma unroll
  for (int i = 0; i < IN_FLIGHT; i++)
    if (first + i < end) inputs[i] = load_inputs(first + i);
  for (int step = first; step < end; step += IN_FLIGHT) {
#pragma unroll
    for (int i = 0; i < IN_FLIGHT; i++) {
      if (step + i >= end) break;
      mine.add(w[i], inputs[i]);
      if (step + i + IN_FLIGHT >= end) continue;
      w[i] = weights.load(step + i + IN_FLIGHT);
      inputs[i] = load_inputs(step + i + IN_FLIGHT);
    }
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
