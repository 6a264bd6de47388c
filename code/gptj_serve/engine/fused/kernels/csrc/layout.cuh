// How the activations of a few rows lie in memory.
//
// The products of decode.cuh read 32 columns of all rows at a time: those lie together, row after row, so that a
// warp loads whole lines. cuBLAS wants plain rows.
#pragma once
#include <stdint.h>

namespace fused {

constexpr int LAYOUT_COLUMNS = 32;

struct Layout {
  int width; // of a row
  int rows;  // that lie together; 0 for plain rows

  __device__ __forceinline__ int64_t place(int row, int column) const {
    if (rows == 0) return static_cast<int64_t>(row) * width + column;
    return (column / LAYOUT_COLUMNS * rows + row) * LAYOUT_COLUMNS + column % LAYOUT_COLUMNS;
  }
};

}  // namespace fused
