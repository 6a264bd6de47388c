// The library's functions. Each only launches kernels on the given stream and returns a cudaError_t; none
// waits, allocates or keeps state, so all of them can be captured into a CUDA graph. Plain C: the library
// depends on no version of PyTorch or Python.
#include <algorithm>

#include "prompts.cuh"
#include "rows.cuh"

#define EXPORT extern "C" __attribute__((visibility("default")))

using namespace fused;

namespace {

enum class Start { AFTER, OVERLAPPING };  // the kernel before: wait for its end, or start while it runs

struct Grid {
  dim3 blocks;
  int threads, shared_bytes;
  Grid(dim3 blocks, int threads = THREADS, int shared_bytes = 0)
      : blocks(blocks), threads(threads), shared_bytes(shared_bytes) {}
};

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), Grid grid, cudaStream_t stream, Start start,
                   Arguments... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid.blocks;
  config.blockDim = dim3(grid.threads);
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = start == Start::OVERLAPPING ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

#define TRY(...)                                        \
  do {                                                  \
    cudaError_t error = static_cast<cudaError_t>(__VA_ARGS__); \
    if (error != cudaSuccess) return static_cast<int>(error); \
  } while (0)

// The MLP's tiles between those of q, k and v and attention, as a share of all of the MLP's
constexpr float TILES_BEFORE_ATTENTION = 0.4f;

// Thread blocks for one head's attention, all rows of the batch together
constexpr int ATTENTION_BLOCKS = 32;

ProjectGrid project_grid(const Model &model, const Product &product, int num_rows) {
  ProjectGrid grid;
  const int num_inner_tiles = (product.matrix.rows - product.first_inner_row) / TILE_ROWS;
  grid.num_qkv_tiles = product.first_inner_row / TILE_ROWS;
  grid.num_tiles = grid.num_qkv_tiles + num_inner_tiles;
  grid.num_tiles_before = grid.num_qkv_tiles + static_cast<int>(num_inner_tiles * TILES_BEFORE_ATTENTION);
  grid.attention_blocks_per_head = std::min(std::max(ATTENTION_BLOCKS / num_rows, 1), MAX_SPLITS);
  grid.num_attention = grid.num_qkv_tiles ? num_rows * model.num_heads * grid.attention_blocks_per_head : 0;
  return grid;
}

// What every launch of one call has in common.
struct Call {
  const Model &model;
  const Tokens &tokens;
  const Scratch &scratch;
  int num_rows;
  Start start;
  cudaStream_t stream;
};

template <class Weights, int TILES, int HEAD_DIM>
int launch_product(const Call &call, const Layer &layer, const Product &product) {
  if (product.epilogue == EPILOGUE_ADD) {
    return launch(add<Weights, TILES>, dim3(product.matrix.rows / TILE_ROWS), call.stream, call.start, call.model,
                  product, call.scratch, call.num_rows);
  }
  const ProjectGrid grid = project_grid(call.model, product, call.num_rows);
  return launch(project<Weights, TILES, HEAD_DIM>, dim3(grid.num_tiles + grid.num_attention), call.stream, call.start,
                call.model, product, layer.keys, layer.values, call.tokens, call.scratch, grid, call.num_rows);
}

template <int TILES, int HEAD_DIM>
int decode(const Call &call, const Layer *layers, int num_layers) {
  const Model &model = call.model;
  const Layout normed = {model.width, call.num_rows};
  TRY(launch(embed, dim3(call.num_rows), call.stream, Start::AFTER, model, call.tokens, call.scratch, normed));
  for (const Layer *layer = layers; layer < layers + num_layers; layer++)
    for (int i = 0; i < layer->num_products; i++) {
      const Product &product = layer->products[i];
      // another format is another case here, and in the head
      if (product.matrix.format != FORMAT_FP16) return cudaErrorInvalidValue;
      TRY(launch_product<Fp16, TILES, HEAD_DIM>(call, *layer, product));
    }
  if (model.head.format != FORMAT_FP16) return cudaErrorInvalidValue;
  return launch(head<Fp16, TILES>, dim3((model.vocab + TILE_ROWS - 1) / TILE_ROWS), call.stream, call.start, model,
                call.tokens, call.scratch, call.num_rows);
}

template <int HEAD_DIM>
int decode_rows(const Call &call, const Layer *layers, int num_layers) {
  if (call.num_rows <= TILE_COLUMNS) return decode<1, HEAD_DIM>(call, layers, num_layers);
  return decode<2, HEAD_DIM>(call, layers, num_layers);
}

template <int HEAD_DIM>
int attend(const Call &call, const Layer &layer) {
  // many rows fill the GPU with one thread block a head
  const bool is_small = call.num_rows <= MAX_SMALL_BATCH;
  const int blocks = is_small ? MAX_SPLITS : call.num_rows <= 2 * MAX_SMALL_BATCH ? 2 : 1;
  return launch(attend_rows<HEAD_DIM>, dim3(blocks, call.model.num_heads, call.num_rows), call.stream, call.start,
                call.model, layer.keys, layer.values, call.tokens, call.scratch,
                is_small ? SPLIT_POSITIONS : LONG_SPLIT_POSITIONS);
}

// Shared memory that a thread block of eight warps needs: Ampere's and Ada's smaller GPUs have 99 KiB.
constexpr int LARGE_SHARED_BYTES = 132 << 10;

template <int HEAD_DIM, int KEY_GROUPS>
int attend_tiles(const Model &model, const Layer &layer, const Prompts &prompts, const Scratch &scratch,
                 int num_tokens, Start start, cudaStream_t stream) {
  using Memory = PromptMemory<HEAD_DIM, KEY_GROUPS>;
  const auto kernel = attend_prompts<HEAD_DIM, KEY_GROUPS>;
  TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Memory::BYTES));
  // each prompt may end with a tile that is not full
  const dim3 tiles(num_tokens / QUERY_TILE + prompts.num_prompts, model.num_heads);
  return launch(kernel, Grid(tiles, Memory::THREADS, Memory::BYTES), stream, start, model, layer.keys, layer.values,
                prompts, scratch.projected, scratch.mixed);
}

template <int HEAD_DIM>
int attend_all_prompts(const Model &model, const Layer &layer, const Prompts &prompts, const Scratch &scratch,
                       int num_tokens, Start start, cudaStream_t stream) {
  int device, shared_bytes;
  TRY(cudaGetDevice(&device));
  TRY(cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  // prompts that begin are short here: a second half of the tile would come for nothing
  if (shared_bytes >= LARGE_SHARED_BYTES && !prompts.all_begin)
    return attend_tiles<HEAD_DIM, 4>(model, layer, prompts, scratch, num_tokens, start, stream);
  return attend_tiles<HEAD_DIM, 2>(model, layer, prompts, scratch, num_tokens, start, stream);
}

Start start_of(int overlap) { return overlap ? Start::OVERLAPPING : Start::AFTER; }

}  // namespace

// Sizes of the structures in the order of fused.h: the caller's mirror must agree.
EXPORT void fused_sizes(int32_t sizes[5]) {
  sizes[0] = sizeof(Model), sizes[1] = sizeof(Layer), sizes[2] = sizeof(Tokens), sizes[3] = sizeof(Prompts);
  sizes[4] = sizeof(Scratch);
}

EXPORT const char *fused_error(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

// Whether kernels may start while the one before still runs: their waits exist in code for compute capability 9.0
// and newer alone, whatever the GPU is.
EXPORT int fused_can_overlap() {
  cudaFuncAttributes attributes = {};
  return cudaFuncGetAttributes(&attributes, add_rows) == cudaSuccess && attributes.ptxVersion >= 90;
}

// Whether `fused_attend_prompts` may be called: it needs what compute capability 8.0 has.
EXPORT int fused_can_attend_prompts() {
#ifdef FUSED_NO_MMA
  return 0;
#endif
  cudaFuncAttributes attributes = {};
  return cudaFuncGetAttributes(&attributes, add_rows) == cudaSuccess && attributes.ptxVersion >= 80;
}

// `overlap` below: kernels may start while the one before still runs (only where `fused_can_overlap`).

// A whole decode step for 1..MAX_SMALL_BATCH tokens of as many sequences. `layers` is in host memory.
EXPORT int fused_decode(const Model *model, const Layer *layers, const Tokens *tokens, const Scratch *scratch,
                        int num_layers, int num_rows, int overlap, cudaStream_t stream) {
  if (num_rows < 1 || num_rows > MAX_SMALL_BATCH) return cudaErrorInvalidValue;
  const Call call = {*model, *tokens, *scratch, num_rows, start_of(overlap), stream};
  switch (model->head_dim) {
    case 64: return decode_rows<64>(call, layers, num_layers);
    case 128: return decode_rows<128>(call, layers, num_layers);
    case 256: return decode_rows<256>(call, layers, num_layers);
  }
  return cudaErrorInvalidValue;
}

// hidden and normed of T tokens.
EXPORT int fused_embed(const Model *model, const Tokens *tokens, const Scratch *scratch, int num_rows,
                       cudaStream_t stream) {
  return launch(embed, dim3(num_rows), stream, Start::AFTER, *model, *tokens, *scratch, Layout{model->width, 0});
}

// See `finish_projection_rows`. `product` is one of the layer's.
EXPORT int fused_finish_projection(const Model *model, const Layer *layer, const Tokens *tokens,
                                   const Scratch *scratch, int product, int num_rows, int overlap,
                                   cudaStream_t stream) {
  // a few tokens would leave most of the GPU idle
  const int blocks_per_token = num_rows >= 512 ? 4 : num_rows >= 128 ? 7 : 14;
  return launch(finish_projection_rows, dim3(num_rows, blocks_per_token), stream, start_of(overlap), *model,
                layer->products[product], layer->keys, layer->values, *tokens, *scratch);
}

// See `attend_prompts`. `prompts` is in host memory, what it points to is not.
EXPORT int fused_attend_prompts(const Model *model, const Layer *layer, const Prompts *prompts,
                                const Scratch *scratch, int num_tokens, int overlap, cudaStream_t stream) {
  const Start start = start_of(overlap);
  switch (model->head_dim) {
    case 64: return attend_all_prompts<64>(*model, *layer, *prompts, *scratch, num_tokens, start, stream);
    case 128: return attend_all_prompts<128>(*model, *layer, *prompts, *scratch, num_tokens, start, stream);
    case 256: return attend_all_prompts<256>(*model, *layer, *prompts, *scratch, num_tokens, start, stream);
  }
  return cudaErrorInvalidValue;
}

// See `attend_rows`.
EXPORT int fused_attend(const Model *model, const Layer *layer, const Tokens *tokens, const Scratch *scratch,
                        int num_rows, int overlap, cudaStream_t stream) {
  const Call call = {*model, *tokens, *scratch, num_rows, start_of(overlap), stream};
  switch (model->head_dim) {
    case 64: return attend<64>(call, *layer);
    case 128: return attend<128>(call, *layer);
    case 256: return attend<256>(call, *layer);
  }
  return cudaErrorInvalidValue;
}

// See `add_rows`.
EXPORT int fused_add(const Model *model, const Layer *layer, const Scratch *scratch, int product, int num_rows,
                     int overlap, cudaStream_t stream) {
  return launch(add_rows, dim3(num_rows), stream, start_of(overlap), *model, layer->products[product], *scratch);
}

// See `choose_rows`.
EXPORT int fused_choose(const Model *model, const Tokens *tokens, const Scratch *scratch, int num_rows, int overlap,
                        cudaStream_t stream) {
  return launch(choose_rows, Grid(dim3(num_rows), CHOOSE_THREADS), stream, start_of(overlap), *model, *tokens, *scratch);
}
