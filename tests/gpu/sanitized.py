"""What `test_sanitizer_gpu` runs under compute-sanitizer: the fused engine's kernels, on the demo model."""

import os

import torch
from states import batch, copy_of, random_state

from gptj_serve import demo
from gptj_serve.engine.fused.compiler import find_library
from gptj_serve.engine.fused.cuda_kernels import CudaKernels
from gptj_serve.engine.fused.geometry import read_geometry
from gptj_serve.engine.fused.kernels import Tokens
from gptj_serve.engine.fused.loader import load_weights
from gptj_serve.engine.fused.model import FusedModel, PromptPart
from gptj_serve.engine.model_dir import find_checkpoint

BATCHES = ((300,), (0, 15, 16, 200), tuple(range(1, 160, 10)), (*range(0, 400, 20), -1))


@torch.inference_mode()
def main() -> None:
    """Decode batches of every kind, and read a prompt."""
    device = torch.device("cuda", 0)
    checkpoint = find_checkpoint(demo.MODEL_DIR)
    state = random_state(read_geometry(checkpoint), load_weights(checkpoint, device, torch.float16), 400)
    major, minor = torch.cuda.get_device_capability()
    library = find_library(os.environ, [f"{major}.{minor}"])
    for positions in BATCHES:
        one = copy_of(state)
        FusedModel(one, CudaKernels(library, one)).decode(batch(one, positions).tokens)
    prompt = batch(state, range(40)).tokens
    tokens = Tokens(
        prompt.positions_T, torch.arange(40, dtype=torch.int32, device=device), prompt.history_rows_T
    )
    last = Tokens(*(part[-1:] for part in (tokens.positions_T, tokens.cache_rows_T, tokens.history_rows_T)))
    model = FusedModel(state, CudaKernels(library, state))
    model.prefill(tokens, [PromptPart(0, 40, 0, None)], torch.tensor([39], device=device), last)
    torch.cuda.synchronize()
    print("done")


if __name__ == "__main__":
    main()
