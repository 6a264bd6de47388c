// Small device functions: loads, reductions, and what orders thread blocks.
#pragma once
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

namespace fused {

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

// Programmatic dependent launch: a kernel may start while the one before it still runs. Nothing that the
// one before writes may be read, and nothing written, before the wait.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Weights are read once: they must not push the activations out of L1.
__device__ __forceinline__ uint4 load_streaming(const uint4 *address) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3},[%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(address));
  return v;
}

// From L2: for what other thread blocks of this very launch may have written.
__device__ __forceinline__ uint4 load_shared_by_blocks(const void *address) {
  return __ldcg(static_cast<const uint4 *>(address));
}

__device__ __forceinline__ void to_floats(const uint4 &v, float (&f)[8]) {
  const half2 *pairs = reinterpret_cast<const half2 *>(&v);
#pragma unroll
  for (int i = 0; i < 4; i++) {
    float2 pair = __half22float2(pairs[i]);
    f[2 * i] = pair.x;
    f[2 * i + 1] = pair.y;
  }
}

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int offset = 16; offset; offset >>= 1) v += __shfl_xor_sync(ALL_LANES, v, offset);
  return v;
}

// gelu_new: the tanh is written with one exponential
__device__ __forceinline__ float gelu(float x) {
  float u = 0.7978845608028654f * (x + 0.044715f * x * x * x);
  return 0.5f * x * (2.f - 2.f / (1.f + __expf(2.f * u)));
}

// What this thread block wrote is visible to whoever sees the counter's new value. All threads must call.
__device__ __forceinline__ void arrive(uint32_t *counter) {
  __syncthreads();
  if (threadIdx.x == 0) asm volatile("red.release.gpu.global.add.u32 [%0],1;" ::"l"(counter) : "memory");
}

// True for the last of `expected` thread blocks, which then sees what all the others wrote; the counter is
// zero again. All threads must call.
__device__ __forceinline__ bool arrive_last(uint32_t *counter, unsigned expected) {
  __shared__ bool is_last;
  __syncthreads();
  if (threadIdx.x == 0) {
    unsigned before;
    asm volatile("atom.acq_rel.gpu.global.inc.u32 %0,[%1],%2;"
                 : "=r"(before)
                 : "l"(counter), "r"(expected - 1)
                 : "memory");
    is_last = before == expected - 1;
  }
  __syncthreads();
  return is_last;
}

// Wait until `expected` thread blocks have arrived. They must have lower block indexes: the hardware starts
// thread blocks in that order, so those waited for run or have run. A bug ends in an error, not in a hang.
__device__ __forceinline__ void wait_for_arrivals(const uint32_t *counter, unsigned expected) {
  if (threadIdx.x == 0) {
    unsigned arrived, tries = 0;
    do {
      asm volatile("ld.acquire.gpu.global.u32 %0,[%1];" : "=r"(arrived) : "l"(counter) : "memory");
      if (++tries > 20000000u) __trap();
    } while (arrived < expected);
  }
  __syncthreads();
}

// Orders floats as integers, the lower row first among equals; a NaN is above all numbers.
__device__ __forceinline__ uint64_t sort_key(float value, int row) {
  uint32_t bits = __float_as_uint(value);
  bits = (value != value) ? 0xffffffffu : (bits & 0x80000000u) ? ~bits : (bits | 0x80000000u);
  return (static_cast<uint64_t>(bits) << 32) | (0xffffffffu - static_cast<uint32_t>(row));
}
__device__ __forceinline__ int row_of_key(uint64_t key) {
  return static_cast<int>(0xffffffffu - static_cast<uint32_t>(key));
}
__device__ __forceinline__ float value_of_key(uint64_t key) {
  uint32_t bits = static_cast<uint32_t>(key >> 32);
  return __uint_as_float((bits & 0x80000000u) ? (bits & 0x7fffffffu) : ~bits);
}

}  // namespace fused
