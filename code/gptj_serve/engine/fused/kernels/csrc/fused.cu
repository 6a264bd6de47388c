// The library's functions. Each only launches kernels on the given stream and returns a cudaError_t; none
// waits, allocates or keeps state, so all of them can be captured into a CUDA graph. Plain C: the library
// depends on no version of PyTorch or Python.
#include <algorithm>

#include "rows.cuh"

#define EXPORT extern "C" __attribute__((visibility("default")))

using namespace fused;

namespace {

enum class Start { AFTER, OVERLAPPING };  // the kernel before: wait for its end, or start while it runs

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, cudaStream_t stream, Start start,
                   Arguments... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(THREADS);
  config.stream = stream;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = start == Start::OVERLAPPING ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

#define TRY(call)                                       \
  do {                                                  \
    cudaError_t error = (call);                         \
    if (error != cudaSuccess) return static_cast<int>(error); \
  } while (0)

// The MLP's tiles between those of q, k and v and attention, as a share of all of the MLP's
constexpr float TILES_BEFORE_ATTENTION = 0.4f;

// Thread blocks for one head's attention, all rows of the batch together
constexpr int ATTENTION_BLOCKS = 32;

InGrid in_grid(const Model &model, int num_rows) {
  InGrid grid;
  grid.num_qkv_tiles = 3 * model.d / TILE_ROWS;
  grid.num_tiles = grid.num_qkv_tiles + model.inner / TILE_ROWS;
  grid.num_tiles_before = grid.num_qkv_tiles + static_cast<int>(model.inner / TILE_ROWS * TILES_BEFORE_ATTENTION);
  grid.attention_blocks_per_head = std::min(std::max(ATTENTION_BLOCKS / num_rows, 1), MAX_SPLITS);
  grid.num_attention = num_rows * model.num_heads * grid.attention_blocks_per_head;
  return grid;
}

template <int TILES, int HEAD_DIM>
int decode(const Model &model, const Cache &cache, const Tokens &tokens, const Scratch &scratch, int num_rows,
           Start start, cudaStream_t stream) {
  const InGrid grid = in_grid(model, num_rows);
  const Layout normed = {model.d, num_rows};
  TRY(launch(embed, dim3(num_rows), stream, Start::AFTER, model, tokens, scratch, normed));
  for (int layer = 0; layer < model.num_layers; layer++) {
    TRY(launch(in_projection<TILES, HEAD_DIM>, dim3(grid.num_tiles + grid.num_attention), stream, start, model, cache,
               tokens, scratch, grid, num_rows, layer));
    TRY(launch(out_projection<TILES>, dim3(model.d / TILE_ROWS), stream, start, model, scratch, num_rows, layer));
  }
  TRY(launch(head<TILES>, dim3((model.vocab + TILE_ROWS - 1) / TILE_ROWS), stream, start, model, tokens, scratch,
             num_rows));
  return 0;
}

template <int HEAD_DIM>
int decode_tiles(const Model &model, const Cache &cache, const Tokens &tokens, const Scratch &scratch, int num_rows,
                 Start start, cudaStream_t stream) {
  if (num_rows <= TILE_COLUMNS) return decode<1, HEAD_DIM>(model, cache, tokens, scratch, num_rows, start, stream);
  return decode<2, HEAD_DIM>(model, cache, tokens, scratch, num_rows, start, stream);
}

template <int HEAD_DIM>
int attend(const Model &model, const Cache &cache, const Tokens &tokens, const Scratch &scratch, int num_rows,
           int layer, Start start, cudaStream_t stream) {
  // many rows fill the GPU with one thread block a head
  const bool is_small = num_rows <= MAX_SMALL_BATCH;
  const int blocks = is_small ? MAX_SPLITS : num_rows <= 2 * MAX_SMALL_BATCH ? 2 : 1;
  return launch(attend_rows<HEAD_DIM>, dim3(blocks, model.num_heads, num_rows), stream, start, model, cache, tokens,
                scratch, is_small ? SPLIT_POSITIONS : LONG_SPLIT_POSITIONS, layer);
}

Start start_of(int overlap) { return overlap ? Start::OVERLAPPING : Start::AFTER; }

}  // namespace

// Sizes of the structures in the order Model, Cache, Tokens, Scratch: the caller's mirror must agree.
EXPORT void fused_sizes(int32_t sizes[4]) {
  sizes[0] = sizeof(Model), sizes[1] = sizeof(Cache), sizes[2] = sizeof(Tokens), sizes[3] = sizeof(Scratch);
}

EXPORT const char *fused_error(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

// Whether kernels may start while the one before still runs: their waits exist in code for compute capability 9.0
// and newer alone, whatever the GPU is.
EXPORT int fused_can_overlap() {
  cudaFuncAttributes attributes = {};
  return cudaFuncGetAttributes(&attributes, add_and_normalise_rows) == cudaSuccess && attributes.ptxVersion >= 90;
}

// `overlap` below: kernels may start while the one before still runs (only where `fused_can_overlap`).

// A whole decode step for 1..MAX_SMALL_BATCH tokens of as many sequences.
EXPORT int fused_decode(const Model *model, const Cache *cache, const Tokens *tokens, const Scratch *scratch,
                        int num_rows, int overlap, cudaStream_t stream) {
  const Start start = start_of(overlap);
  if (num_rows < 1 || num_rows > MAX_SMALL_BATCH) return cudaErrorInvalidValue;
  switch (model->head_dim) {
    case 64: return decode_tiles<64>(*model, *cache, *tokens, *scratch, num_rows, start, stream);
    case 128: return decode_tiles<128>(*model, *cache, *tokens, *scratch, num_rows, start, stream);
    case 256: return decode_tiles<256>(*model, *cache, *tokens, *scratch, num_rows, start, stream);
  }
  return cudaErrorInvalidValue;
}

// hidden and normed of T tokens.
EXPORT int fused_embed(const Model *model, const Tokens *tokens, const Scratch *scratch, int num_rows,
                       cudaStream_t stream) {
  return launch(embed, dim3(num_rows), stream, Start::AFTER, *model, *tokens, *scratch, Layout{model->d, 0});
}

// See `finish_in_rows`.
EXPORT int fused_finish_in(const Model *model, const Cache *cache, const Tokens *tokens, const Scratch *scratch,
                           int num_rows, int layer, int overlap, cudaStream_t stream) {
  // a few tokens would leave most of the GPU idle
  const int blocks_per_token = num_rows >= 512 ? 1 : num_rows >= 128 ? 4 : 16;
  return launch(finish_in_rows, dim3(num_rows, blocks_per_token), stream, start_of(overlap), *model, *cache,
                *tokens, *scratch, layer);
}

// See `attend_rows`.
EXPORT int fused_attend(const Model *model, const Cache *cache, const Tokens *tokens, const Scratch *scratch,
                        int num_rows, int layer, int overlap, cudaStream_t stream) {
  const Start start = start_of(overlap);
  switch (model->head_dim) {
    case 64: return attend<64>(*model, *cache, *tokens, *scratch, num_rows, layer, start, stream);
    case 128: return attend<128>(*model, *cache, *tokens, *scratch, num_rows, layer, start, stream);
    case 256: return attend<256>(*model, *cache, *tokens, *scratch, num_rows, layer, start, stream);
  }
  return cudaErrorInvalidValue;
}

// See `add_and_normalise_rows`.
EXPORT int fused_add_and_normalise(const Model *model, const Scratch *scratch, int num_rows, int layer, int overlap,
                                   cudaStream_t stream) {
  return launch(add_and_normalise_rows, dim3(num_rows), stream, start_of(overlap), *model, *scratch, layer);
}

// See `choose_rows`.
EXPORT int fused_choose(const Model *model, const Tokens *tokens, const Scratch *scratch, int num_rows, int overlap,
                        cudaStream_t stream) {
  return launch(choose_rows, dim3(num_rows), stream, start_of(overlap), *model, *tokens, *scratch);
}
