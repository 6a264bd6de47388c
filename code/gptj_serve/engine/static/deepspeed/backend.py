"""The `deepspeed` engine: Transformers' GPT-J with DeepSpeed's inference kernels injected.

We drive the injected blocks ourselves (`wte` → blocks → `ln_f` → `lm_head`) and keep every rule that
the kernels do not check: they read a wrong mask as raw memory, write past a workspace that is too
small, and take a one-token prompt for the continuation of the previous request. Never used:
`engine.generate` (one-key-wide masks), `enable_cuda_graph` (the length is baked into each launch),
tensor parallelism.

Shape suffixes: B rows, T columns of this call, K columns so far, D width, V vocabulary, 1 one.
"""

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from transformers import GPTJForCausalLM

from gptj_serve.engine.device_errors import batch_errors
from gptj_serve.engine.scheduler import Limits
from gptj_serve.engine.start_log import logged_warm_up
from gptj_serve.engine.static.deepspeed.inject import RunBlock, bind_block, check_first, inject, reset_cache
from gptj_serve.engine.static.deepspeed.kernels import (
    check_extension,
    ensure_kernels,
    stdout_to_stderr,
)
from gptj_serve.engine.static.deepspeed.rules import (
    ModelShape,
    check_config,
    check_dtype,
    choose_batch_size,
    choose_context,
)
from gptj_serve.errors import StartupError, first_line
from gptj_serve.logs import log_event

logger = logging.getLogger(__name__)

PAD_ID = 0
"""Fills rows on the left; it may be any id, as the mask hides it."""

MAX_RELATIVE_ERROR = 0.05
"""The largest error of logits against the plain model in FP16. Right kernels stay below 0.01."""

NUM_PROBE_TOKENS = 16


@dataclass(slots=True)
class _KernelBatch:
    """The batch that is running.

    Attributes:
        num_rows: How many rows there are, B.
        num_columns: How many columns there are so far, K.
        full_mask: The additive mask, B11M, where M is how many columns there can be; None if no row is
            padded.
    """

    num_rows: int
    num_columns: int
    full_mask: torch.Tensor | None

    def mask(self) -> torch.Tensor | None:
        """The mask, B11K. The kernel counts from the start of its data and would misread a view with gaps."""
        return None if self.full_mask is None else self.full_mask[..., : self.num_columns].contiguous()


class DeepSpeedBackend:
    """Meets `Backend`; made by `load_deepspeed`.

    Args:
        model: The injected model: embeddings, final norm and head are used, not its `forward`.
        run_blocks: A function for each block, in order.
        limits: The limits that the workspace was allocated for.
    """

    name = "deepspeed"

    def __init__(self, model: GPTJForCausalLM, run_blocks: Sequence[RunBlock], limits: Limits) -> None:
        self.limits = limits
        self._run_blocks = tuple(run_blocks)
        self._embedding_VD = model.transformer.wte.weight
        self._final_norm = model.transformer.ln_f
        self._head = model.lm_head
        self._batch: _KernelBatch | None = None
        self._is_clean = True

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """See `Backend.prefill`."""
        if not self._is_clean:
            raise RuntimeError("prefill: reset() has to end the batch before")
        self._check_prompts(prompts)
        self._is_clean = False
        longest = max(map(len, prompts))
        with batch_errors("reading the prompts"):
            reset_cache()  # without this, a one-token prompt continues where another request stopped
            padded = [[PAD_ID] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
            mask = self._padding_mask([longest - len(prompt) for prompt in prompts])
            batch = _KernelBatch(len(prompts), longest, mask)
            logits_BV = self._run(padded, batch)
            self._batch = batch
            return logits_BV

    @torch.inference_mode()
    def decode(self, token_ids: Sequence[int]) -> torch.Tensor:
        """See `Backend.decode`."""
        batch = self._batch
        if batch is None:
            raise RuntimeError("decode: no batch is running")
        self._check_tokens(token_ids, batch)
        self._batch = None  # only a step that succeeds leaves something to go on with
        with batch_errors("decoding"):
            batch.num_columns += 1
            logits_BV = self._run([[token_id] for token_id in token_ids], batch)
            self._batch = batch
            return logits_BV

    def reset(self) -> None:
        """See `Backend.reset`. It touches no GPU, so it works after any failure."""
        reset_cache()
        self._batch = None
        self._is_clean = True

    def _run(self, ids: list[list[int]], batch: _KernelBatch) -> torch.Tensor:
        ids_BT = torch.tensor(ids, device=self._embedding_VD.device)
        x_BTD = F.embedding(ids_BT, self._embedding_VD)  # it is a copy, because the blocks overwrite it
        mask_B11K = batch.mask()
        for run_block in self._run_blocks:
            run_block(x_BTD, mask_B11K)
        logits_BV: torch.Tensor = self._head(self._final_norm(x_BTD[:, -1]))
        return logits_BV.float()

    def _padding_mask(self, num_padded: list[int]) -> torch.Tensor | None:
        if not any(num_padded):
            return None
        dtype, device = self._embedding_VD.dtype, self._embedding_VD.device
        column_M = torch.arange(self.limits.max_context, device=device)
        is_pad_BM = column_M < torch.tensor(num_padded, device=device)[:, None]
        mask_BM = torch.zeros(is_pad_BM.shape, dtype=dtype, device=device)
        return mask_BM.masked_fill_(is_pad_BM, torch.finfo(dtype).min)[:, None, None]

    def _check_prompts(self, prompts: Sequence[Sequence[int]]) -> None:
        if not 1 <= len(prompts) <= self.limits.max_batch_size:
            raise ValueError(f"{len(prompts)} rows; a batch has 1 to {self.limits.max_batch_size}")
        if not all(prompts):
            raise ValueError("every prompt needs at least one token")
        self._check_columns(max(map(len, prompts)))
        for prompt in prompts:
            self._check_ids(prompt)

    def _check_tokens(self, token_ids: Sequence[int], batch: _KernelBatch) -> None:
        if len(token_ids) != batch.num_rows:
            raise ValueError(f"{len(token_ids)} tokens for a batch of {batch.num_rows} rows")
        self._check_columns(batch.num_columns + 1)
        self._check_ids(token_ids)

    def _check_columns(self, num_columns: int) -> None:
        if num_columns > self.limits.max_context:
            raise ValueError(f"{num_columns} tokens; the context holds {self.limits.max_context}")

    def _check_ids(self, ids: Sequence[int]) -> None:
        # on a GPU an id outside the table is an error that only ends with the process
        if min(ids) < 0 or max(ids) >= self.limits.vocab_size:
            raise ValueError(f"token ids must be 0 to {self.limits.vocab_size - 1}")


def load_deepspeed(
    model: GPTJForCausalLM, max_batch_size: int | None, max_context: int | None
) -> DeepSpeedBackend:
    """Inject the kernels, take the workspace, warm up and compare with the plain model.

    Args:
        model: FP16, on the GPU, in evaluation mode. It is consumed: its blocks are replaced.
        max_batch_size: How many rows there are at most; None takes as many as fit, up to 8.
        max_context: How many columns there are at most, no more than the model's; None takes the model's.

    Raises:
        StartupError: The model, the machine or the settings do not allow it; the message says which.
    """
    check_config(model.config)
    check_dtype({parameter.dtype for parameter in model.parameters()}, model.device.type)
    shape = ModelShape.of(model.config, model.dtype)
    max_context = choose_context(shape, max_context)
    extension = ensure_kernels()
    check_extension(extension, model.dtype)
    check_first(model)
    num_probes = min(max_context, NUM_PROBE_TOKENS)
    probe_ids = [(7919 * index + 11) % shape.vocab_size for index in range(num_probes)]
    with _start_failures():
        expected_2V = _last_two_logits(model, probe_ids)
        blocks = inject(model, extension, max_context)
        batch_size = choose_batch_size(shape, _free_bytes(model.device), max_batch_size, max_context)
        limits = Limits(batch_size, max_context, shape.vocab_size)
        backend = DeepSpeedBackend(model, [bind_block(block) for block in blocks], limits)
        _take_workspace(backend, blocks)
        with logged_warm_up():
            _warm_up(backend)
        error = _check_logits(backend, probe_ids, expected_2V)
    message = "the model runs on DeepSpeed's kernels"
    log_event(logger, "deepspeed_loaded", message, relative_error=error, max_batch_size=batch_size)
    return backend


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the workspace is not taken from PyTorch's allocator
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def _start_failures() -> Iterator[None]:
    try:
        yield
    except StartupError:
        raise
    except Exception as error:
        cause = first_line(error.__cause__ or error)
        message = "DeepSpeed's kernels could not be started"
        log_event(logger, "deepspeed_failed", message, level=logging.ERROR, error=error)
        cure = "lower GPTJ_MAX_BATCH_SIZE or GPTJ_MAX_CONTEXT, or set GPTJ_ENGINE=hf"
        if "no kernel image" in cause:
            cure = (
                "they were built for other GPUs: build the image with this one's compute capability in "
                "KERNEL_ARCHS (elsewhere: TORCH_CUDA_ARCH_LIST), or set GPTJ_ENGINE=hf"
            )
        raise StartupError(f"DeepSpeed's kernels could not be started ({cause}); {cure}") from error


@torch.inference_mode()
def _take_workspace(backend: DeepSpeedBackend, blocks: Sequence[Any]) -> None:
    """Allocate the workspace, at the first forward of block 0 and for this batch size once and for all.

    The same forward shows that our direct calls do what the blocks do.
    """
    device, limits = backend._embedding_VD.device, backend.limits
    ids_BT = torch.arange(2, device=device).repeat(limits.max_batch_size, 1)
    x_BTD = F.embedding(ids_BT, backend._embedding_VD)
    ours_BTD = x_BTD.clone()
    with stdout_to_stderr():
        for block in blocks:
            x_BTD = block.forward(x_BTD)
    reset_cache()
    for run_block in backend._run_blocks:
        run_block(ours_BTD, None)
    reset_cache()
    if not _relative_error(ours_BTD, x_BTD) <= MAX_RELATIVE_ERROR:
        raise StartupError("this version of DeepSpeed computes its GPT-J blocks in another way than we do")


def _warm_up(backend: DeepSpeedBackend) -> None:
    """Run the smallest and the largest batches, so that what does not fit fails here, not with a request."""
    limits = backend.limits
    for num_rows in sorted({1, limits.max_batch_size}):
        for num_columns in sorted({1, min(2, limits.max_context - 1), limits.max_context - 1}):
            prompts = [[PAD_ID] * num_columns] * num_rows
            prompts[1:2] = [[PAD_ID]] * len(prompts[1:2])  # a row is padded, so that masks are warmed up, too
            backend.prefill(prompts)
            logits_BV = backend.decode([PAD_ID] * num_rows)
            logits_BV.sum().item()  # kernels fail late, so they are waited for here
            backend.reset()


@torch.inference_mode()
def _last_two_logits(model: GPTJForCausalLM, ids: Sequence[int]) -> torch.Tensor:
    """The plain model's logits_2V (float32) of a few tokens, computed before its blocks are replaced."""
    logits_1TV: torch.Tensor = model(torch.tensor([ids], device=model.device), use_cache=False).logits
    return logits_1TV[0, -2:].float().clone()


def _check_logits(backend: DeepSpeedBackend, ids: Sequence[int], expected_2V: torch.Tensor) -> float:
    """The kernels' relative error. They often fail silently, so they are compared before anything is served.

    Raises:
        StartupError: The error is too large, or not a number.
    """
    prefill_1V = backend.prefill([ids[:-1]])
    decode_1V = backend.decode(ids[-1:])
    backend.reset()
    error = _relative_error(torch.cat([prefill_1V, decode_1V]), expected_2V)
    if not error <= MAX_RELATIVE_ERROR:
        raise StartupError(
            f"DeepSpeed's kernels disagree with the plain model (relative error {error:.4f}, at most "
            f"{MAX_RELATIVE_ERROR} is right): build them again for this GPU and this PyTorch, or set "
            "GPTJ_ENGINE=hf"
        )
    return error


def _relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.float() - expected.float()).norm() / expected.float().norm())
