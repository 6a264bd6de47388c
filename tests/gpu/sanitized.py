"""What `test_sanitizer_gpu` runs under compute-sanitizer: the fused engine's kernels, on the demo model."""

import os

import torch
from states import batch, copy_of, mixed_step, random_state

from gptj_serve import demo
from gptj_serve.engine.fused.compiler import find_library
from gptj_serve.engine.fused.cuda_kernels import CudaKernels
from gptj_serve.engine.fused.geometry import read_geometry
from gptj_serve.engine.fused.loader import load_weights
from gptj_serve.engine.fused.model import FusedModel
from gptj_serve.engine.model_dir import find_checkpoint

BATCHES = ((300,), (0, 15, 16, 200), tuple(range(1, 160, 10)), (*range(0, 400, 20), -1))


def main() -> None:
    """Decode batches of every kind, and read a prompt."""
    device = torch.device("cuda", 0)
    checkpoint = find_checkpoint(demo.MODEL_DIR)
    weights = load_weights(checkpoint, device, torch.float16)
    torch.set_grad_enabled(False)
    state = random_state(read_geometry(checkpoint), weights, 400)
    major, minor = torch.cuda.get_device_capability()
    library = find_library(os.environ, [f"{major}.{minor}"])
    for positions in BATCHES:
        one = copy_of(state)
        FusedModel(one, CudaKernels(library, one)).decode(batch(one, positions).tokens)
    FusedModel(state, CudaKernels(library, state)).prefill(mixed_step(state))
    torch.cuda.synchronize()
    print("done")


if __name__ == "__main__":
    main()
