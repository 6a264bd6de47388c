"""The `hf` engine, Transformers as it is: the baseline, and the engine where there is no GPU.

Shape suffixes: B rows of the batch, T columns of the prompt, C columns that may be filled, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache, GPTJForCausalLM

from gptj_serve.engine.device_errors import batch_errors
from gptj_serve.engine.failures import BackendDead, BatchLost
from gptj_serve.engine.scheduler import Limits
from gptj_serve.engine.start_log import logged_warm_up
from gptj_serve.engine.static.transformers_loader import load_model
from gptj_serve.errors import StartupError
from gptj_serve.models.model_dir import Checkpoint

MAX_AUTO_BATCH_SIZE = 8


def load_hf(
    checkpoint: Checkpoint,
    device: torch.device,
    *,
    max_batch_size: int | None = None,
    max_context: int | None = None,
) -> "HfBackend":
    """Load the model and warm it up: FP16 on a GPU, FP32 on a CPU.

    Args:
        checkpoint: The checkpoint to load.
        device: The device to load it to.
        max_batch_size: Rows in one batch at most; None chooses what fits, 8 at most.
        max_context: Columns at most, no more than the model's; None is the model's.

    Raises:
        StartupError: Too little memory, or the model does not work.
    """
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    model = load_model(checkpoint, device, dtype)
    longest = checkpoint.architecture.max_positions
    max_context = min(max_context or longest, longest)
    if max_batch_size is None:
        max_batch_size = _auto_batch_size(checkpoint, device, max_context)
    backend = HfBackend(model, Limits(max_batch_size, max_context, checkpoint.architecture.vocab_size))
    with logged_warm_up():
        warm_up(backend)
    return backend


def _auto_batch_size(checkpoint: Checkpoint, device: torch.device, max_context: int) -> int:
    if device.type != "cuda":
        return MAX_AUTO_BATCH_SIZE
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return rows_that_fit(free_bytes, row_bytes(checkpoint, max_context))


def row_bytes(checkpoint: Checkpoint, max_context: int) -> int:
    """How many bytes of GPU memory a row of the longest context needs at its worst, roughly.

    The FP16 cache grows by copying, which leaves gaps of half its size. The prompt's attention scores are
    held in float32, up to three times.
    """
    cache = 2 * checkpoint.architecture.num_layers * checkpoint.architecture.width * max_context * 2
    scores = checkpoint.architecture.num_heads * max_context**2 * 4
    return cache * 3 // 2 + 3 * scores


def rows_that_fit(free_bytes: int, bytes_per_row: int) -> int:
    """How many rows fit into a batch, from 1 to `MAX_AUTO_BATCH_SIZE`."""
    return max(1, min(MAX_AUTO_BATCH_SIZE, free_bytes // bytes_per_row))


@dataclass(slots=True)
class _Batch:
    """The running batch. ``mask_BC`` holds ones for every column to come."""

    cache: DynamicCache
    mask_BC: torch.Tensor
    next_positions_B1: torch.Tensor
    num_columns: int


class HfBackend:
    """Meets `gptj_serve.engine.static.backend.Backend` with Transformers' model, masks and cache.

    Prompts are padded on the left. The mask hides the padding and positions count from each row's
    own first token, so that a row's logits do not depend on its neighbours.

    Args:
        model: In evaluation mode.
        limits: What it may hold, which is enforced on every call.
    """

    name = "hf"

    def __init__(self, model: GPTJForCausalLM, limits: Limits) -> None:
        self.limits = limits
        self._model = model
        self._batch: _Batch | None = None

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Start a batch; see `gptj_serve.engine.static.backend.Backend.prefill`."""
        if self._batch is not None:
            raise RuntimeError("prefill: a batch is running; reset first")
        self._check_prompts(prompts)
        num_columns = max(map(len, prompts))
        with batch_errors("reading the prompts"):
            batch, ids_BT = self._pad(prompts, num_columns)
            positions_BT = (batch.mask_BC[:, :num_columns].cumsum(dim=-1) - 1).clamp(min=0)
            logits_BV = self._forward(batch, ids_BT, positions_BT)
        self._batch = batch
        return logits_BV

    @torch.inference_mode()
    def decode(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Append one token to every row; see `gptj_serve.engine.static.backend.Backend.decode`."""
        batch = self._batch
        if batch is None:
            raise RuntimeError("decode: no batch is running; prefill first")
        if len(token_ids) != len(batch.mask_BC):
            raise ValueError(f"{len(token_ids)} tokens for {len(batch.mask_BC)} rows")
        if batch.num_columns + 1 > self.limits.max_context:
            raise ValueError(f"the batch has filled all {self.limits.max_context} columns")
        self._check_ids(token_ids)
        self._batch = None  # only a step that succeeds leaves something to go on with
        with batch_errors("decoding"):
            ids_B1 = torch.tensor(token_ids, device=self._model.device).unsqueeze(1)
            batch.num_columns += 1
            positions_B1 = batch.next_positions_B1
            batch.next_positions_B1 = positions_B1 + 1
            logits_BV = self._forward(batch, ids_B1, positions_B1)
        self._batch = batch
        return logits_BV

    def reset(self) -> None:
        """Forget the running batch; see `gptj_serve.engine.static.backend.Backend.reset`."""
        self._batch = None

    def _forward(self, batch: _Batch, ids_BT: torch.Tensor, positions_BT: torch.Tensor) -> torch.Tensor:
        output = self._model(
            input_ids=ids_BT,
            attention_mask=batch.mask_BC[:, : batch.num_columns],
            position_ids=positions_BT,
            past_key_values=batch.cache,
            use_cache=True,
            logits_to_keep=1,  # a prompt's other logits would take 100 KB a token
        )
        logits_BV: torch.Tensor = output.logits[:, -1].float()
        return logits_BV

    def _pad(self, prompts: Sequence[Sequence[int]], num_columns: int) -> tuple[_Batch, torch.Tensor]:
        device = self._model.device
        padding = [num_columns - len(prompt) for prompt in prompts]
        rows = [[0] * pad + list(prompt) for pad, prompt in zip(padding, prompts, strict=True)]
        columns_C = torch.arange(self.limits.max_context, device=device)
        mask_BC = (columns_C >= torch.tensor(padding, device=device).unsqueeze(1)).long()
        next_positions_B1 = torch.tensor([[len(prompt)] for prompt in prompts], device=device)
        cache = DynamicCache(config=self._model.config)
        return _Batch(cache, mask_BC, next_positions_B1, num_columns), torch.tensor(rows, device=device)

    def _check_prompts(self, prompts: Sequence[Sequence[int]]) -> None:
        if not 1 <= len(prompts) <= self.limits.max_batch_size:
            raise ValueError(f"{len(prompts)} prompts; allowed are 1 to {self.limits.max_batch_size}")
        for prompt in prompts:
            if not 1 <= len(prompt) <= self.limits.max_context:
                raise ValueError(f"a prompt of {len(prompt)} tokens; allowed: 1 to {self.limits.max_context}")
            self._check_ids(prompt)

    def _check_ids(self, token_ids: Sequence[int]) -> None:
        # on a GPU an id outside the embedding ends the whole process
        if min(token_ids) < 0 or max(token_ids) >= self.limits.vocab_size:
            raise ValueError(f"a token id is outside 0 to {self.limits.vocab_size - 1}")


def warm_up(backend: HfBackend) -> None:
    """Run one small batch, so that the first request does not pay for start-up work.

    Raises:
        StartupError: The model gives logits that are not finite numbers, or the device fails.
    """
    prompts = [[0, 0], [0]][: backend.limits.max_batch_size]
    try:
        logits_BV = backend.prefill(prompts)
        if backend.limits.max_context > 2:
            logits_BV = backend.decode([0] * len(prompts))
        is_finite = bool(logits_BV.isfinite().all())
    except (BatchLost, BackendDead) as error:
        raise StartupError(f"the warm-up failed: {error}") from error
    finally:
        backend.reset()
    if not is_finite:
        raise StartupError("the warm-up gave logits that are not finite numbers: the weights are damaged")
