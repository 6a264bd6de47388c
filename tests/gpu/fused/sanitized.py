"""What `test_sanitizer` runs under compute-sanitizer: the fused engine's kernels, on the demo model."""

import os
import sys

import torch

from gptj_serve import demo
from gptj_serve.engine.fused.kernels.cuda import CudaKernels
from gptj_serve.engine.fused.kernels.library import find_library
from gptj_serve.engine.fused.kernels.protocol import Tokens
from gptj_serve.engine.fused.model import FusedModel
from gptj_serve.engine.fused.weights.load import load_weights
from gptj_serve.models.model_dir import find_checkpoint
from support.random_states import batch, copy_of, mixed_step, random_state

BATCHES = ((300,), (0, 15, 16, 200), tuple(range(1, 160, 10)), (*range(0, 400, 20), -1))


def main(with_cublas: bool) -> None:
    """Decode batches of every kind, and read prompts."""
    device = torch.device("cuda", 0)
    checkpoint = find_checkpoint(demo.MODEL_DIR)
    weights = load_weights(checkpoint, device, torch.float16)
    torch.set_grad_enabled(False)
    state = random_state(checkpoint.architecture, weights, 400)
    major, minor = torch.cuda.get_device_capability()
    library = find_library(os.environ, [f"{major}.{minor}"])
    for positions in BATCHES:
        one = copy_of(state)
        kernels, tokens = CudaKernels(library, one), batch(one, positions).tokens
        if with_cublas or tokens.num_tokens <= kernels.max_decode_rows:
            FusedModel(one, kernels).decode(tokens)
        else:
            between_products(kernels, tokens, tokens, tokens)
    kernels, step = CudaKernels(library, state), mixed_step(state)
    if with_cublas:
        FusedModel(state, kernels).prefill(step)
    elif step.decoding is not None:
        between_products(kernels, step.tokens, step.decoding, step.last)
        if kernels.can_attend_prompts:
            kernels.attend_prompts(step.prompts, step.tokens.num_tokens, 0)
    torch.cuda.synchronize()
    print("done")


def between_products(kernels: CudaKernels, tokens: Tokens, decoding: Tokens, last: Tokens) -> None:
    """What the kernels do between cuBLAS's products, on whatever lies there."""
    kernels.embed(tokens)
    for layer in range(2):
        kernels.finish_projection(tokens, layer, 0)
        kernels.attend(decoding, layer)
        kernels.add(tokens.num_tokens, layer, 1)
    kernels.choose(last)


if __name__ == "__main__":
    main(with_cublas=sys.argv[1:] != ["--without-cublas"])
