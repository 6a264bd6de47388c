// LayerNorm of one row by one thread block: numbers in float32, two passes over registers.
#pragma once
#include "device.cuh"
#include "fused.h"
#include "layout.cuh"

namespace fused {

// Sum over the thread block; every thread gets it. `partial` is WARPS numbers that no one else uses.
__device__ __forceinline__ float block_sum(float v, float *partial) {
  v = warp_sum(v);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
  __syncthreads();
  float sum = 0.f;
#pragma unroll
  for (int warp = 0; warp < WARPS; warp++) sum += partial[warp];
  return sum;
}

// Sums of four float32 and four halves.
__device__ __forceinline__ float4 add_4(const float4 &v, const uint2 &halves) {
  const half2 *pairs = reinterpret_cast<const half2 *>(&halves);
  const float2 low = __half22float2(pairs[0]), high = __half22float2(pairs[1]);
  return make_float4(v.x + low.x, v.y + low.y, v.z + high.x, v.w + high.y);
}

// A row in registers, vector i of a thread at column (i * THREADS + threadIdx.x) * 4, -> that row of `normed`.
template <int VECTORS>
__device__ __forceinline__ void normalise_vectors(float4 (&v)[VECTORS], const Norm &norm, half *normed, Layout layout,
                                                  int row, float epsilon) {
  const int width = layout.width;
  __shared__ float partial[2][WARPS];
  uint2 w[VECTORS], b[VECTORS]; // asked for first: they come from far away
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < VECTORS; i++) {
    int at = (i * THREADS + threadIdx.x) * 4;
    if (at >= width) continue;
    w[i] = *reinterpret_cast<const uint2 *>(norm.weight + at);
    b[i] = *reinterpret_cast<const uint2 *>(norm.bias + at);
    sum += (v[i].x + v[i].y) + (v[i].z + v[i].w);
  }
  const float mean = block_sum(sum, partial[0]) / width;
  float squares = 0.f;
#pragma unroll
  for (int i = 0; i < VECTORS; i++) {
    if ((i * THREADS + threadIdx.x) * 4 >= width) continue;
    v[i] = make_float4(v[i].x - mean, v[i].y - mean, v[i].z - mean, v[i].w - mean);
    squares += (v[i].x * v[i].x + v[i].y * v[i].y) + (v[i].z * v[i].z + v[i].w * v[i].w);
  }
  const float scale = rsqrtf(block_sum(squares, partial[1]) / width + epsilon);
#pragma unroll
  for (int i = 0; i < VECTORS; i++) {
    int at = (i * THREADS + threadIdx.x) * 4;
    if (at >= width) continue;
    const half2 *w2 = reinterpret_cast<const half2 *>(&w[i]), *b2 = reinterpret_cast<const half2 *>(&b[i]);
    float2 w0 = __half22float2(w2[0]), w1 = __half22float2(w2[1]);
    float2 b0 = __half22float2(b2[0]), b1 = __half22float2(b2[1]);
    half2 *out = reinterpret_cast<half2 *>(normed + layout.place(row, at));
    out[0] = __floats2half2_rn(v[i].x * scale * w0.x + b0.x, v[i].y * scale * w0.y + b0.y);
    out[1] = __floats2half2_rn(v[i].z * scale * w1.x + b1.x, v[i].w * scale * w1.y + b1.y);
  }
}

// A row of hidden -> its LayerNorm -> that row of normed, by one thread block. `hidden` may have been written by
// other thread blocks of this launch.
__device__ __forceinline__ void normalise_row(const Model &model, const Norm &norm, const Scratch &scratch,
                                              Layout layout, int row) {
  constexpr int VECTORS = MAX_WIDTH / THREADS / 4;
  const float *hidden = scratch.hidden + static_cast<int64_t>(row) * model.width;
  float4 v[VECTORS];
#pragma unroll
  for (int i = 0; i < VECTORS; i++) {
    int at = (i * THREADS + threadIdx.x) * 4;
    if (at < model.width) v[i] = __ldcg(reinterpret_cast<const float4 *>(hidden + at));
  }
  normalise_vectors(v, norm, scratch.normed, layout, row, model.epsilon);
}

}  // namespace fused
