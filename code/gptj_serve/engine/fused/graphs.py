"""Steps as CUDA graphs: captured once for each of a few sizes, and replayed with new inputs.

What differs between steps of one size (positions, cache places, block tables, borders of prompts) lies in
device memory that each step fills, so one graph serves them all. Launching the kernels of a short prompt one
by one takes a host core longer than they take the GPU.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from gptj_serve.engine.fused.model import FusedModel
from gptj_serve.engine.fused.schedule.plan import Row, RunnerLimits
from gptj_serve.engine.fused.step_inputs import PrefillShape, StepInputs, prompt_parts

DECODE_SIZES = (*range(1, 17), 24, 32, 48, 64, 96, 128, 192, 256)
"""Batch sizes that have a graph; a batch is padded to the next one."""

PROMPT_SIZES = (16, 32, 64, 96, 128, 160, 192, 208, 224, 256, 320, 384, 512)
"""Tokens of a step of prompts that begin, with no sequence decoded beside them. At 448, cuBLAS is slower."""

MIXED_SIZES = (64, 128, 192, 256, 320)
"""Tokens of a step that continues prompts, or decodes sequences beside them."""

MAX_GRAPH_PROMPTS = 8
"""Prompts in a step that a graph takes; more are launched kernel by kernel."""

FEW_DECODES = 16
"""Sequences that are decoded beside prompts: there are graphs for so many, and for the largest batch."""


class DecodeGraphs:
    """Decodes batches of every size up to a largest one.

    Without a GPU, and before `capture`, the model is run directly.

    Args:
        model: What is captured.
        inputs: Packs the inputs.
        max_batch_size: Sequences in a batch at most.
        device: Where the model is.
    """

    def __init__(
        self, model: FusedModel, inputs: StepInputs, max_batch_size: int, device: torch.device
    ) -> None:
        self._model = model
        self._inputs = inputs
        self._sizes = (*(size for size in DECODE_SIZES if size < max_batch_size), max_batch_size)
        self._ints = torch.zeros(inputs.num_decode_ints(max_batch_size), dtype=torch.int32, device=device)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def capture(self) -> None:
        """Run and capture every size, the largest first: all use the memory of that one."""
        pool = None
        for size in reversed(self._sizes):
            tokens = self._inputs.decode([], size, self._ints)
            self._model.decode(tokens)
            if not self._ints.is_cuda:
                continue
            self._graphs[size] = _capture(partial(self._model.decode, tokens), pool)
            pool = pool or self._graphs[size].pool()

    def decode(self, rows: Sequence[Row], *, through_cublas: bool = False) -> None:
        """One token of each row: logits and chosen tokens go to the scratch memory.

        Args:
            rows: From one to the largest batch.
            through_cublas: Take the path of large batches, whatever the number; this one has no graphs.
        """
        size = next(size for size in self._sizes if size >= len(rows))
        tokens = self._inputs.decode(rows, size, self._ints)
        if self._graphs and not through_cublas:
            self._graphs[size].replay()
        else:
            self._model.decode(tokens, through_cublas=through_cublas)


class PrefillGraphs:
    """Computes steps with prompts: short ones as graphs, others kernel by kernel.

    There are graphs only where the kernels attend to prompts: they find their borders in device memory. More
    tokens than a graph takes keep the GPU busy for longer than the host needs to launch them.

    Args:
        model: What is captured.
        inputs: Packs the inputs.
        limits: The runner's.
        can_capture: See `Kernels.can_attend_prompts`.
        device: Where the model is.

    Attributes:
        shapes: What has a graph once it is captured: prompts alone first, and the smaller before the larger.
    """

    def __init__(
        self,
        model: FusedModel,
        inputs: StepInputs,
        limits: RunnerLimits,
        *,
        can_capture: bool,
        device: torch.device,
    ) -> None:
        self._model = model
        self._inputs = inputs
        self.shapes = [*_prompt_shapes(limits), *_mixed_shapes(limits)] if can_capture else []
        num_ints = max(map(inputs.num_prefill_ints, self.shapes), default=0)
        self._ints = torch.zeros(num_ints, dtype=torch.int32, device=device)
        self._graphs: dict[PrefillShape, torch.cuda.CUDAGraph] = {}

    def capture(self) -> None:
        """Run and capture every shape, the largest first: all use the memory of that one."""
        pool = None
        for shape in reversed(self.shapes):
            self._inputs.upload_prefill([], [], shape, self._ints)
            batch = self._inputs.prefill_batch(shape, self._ints)
            self._model.prefill(batch)
            self._graphs[shape] = _capture(partial(self._model.prefill, batch), pool)
            pool = pool or self._graphs[shape].pool()

    def shape_for(self, exact: PrefillShape) -> PrefillShape | None:
        """The smallest shape of a graph that holds a step; None if there is none."""
        return next((shape for shape in self.shapes if shape.holds(exact)), None)

    def prefill(self, prompts: Sequence[Row], decodes: Sequence[Row]) -> None:
        """Cache chunks of prompts, and decode sequences beside them; see `FusedModel.prefill`."""
        exact = PrefillShape.of(prompts, decodes)
        shape = self.shape_for(exact)
        if shape is not None and shape in self._graphs:
            self._inputs.upload_prefill(prompts, decodes, shape, self._ints)
            self._graphs[shape].replay()
            return
        ints = self._ints.new_empty(self._inputs.num_prefill_ints(exact))
        self._inputs.upload_prefill(prompts, decodes, exact, ints)
        parts = prompt_parts(prompts, len(decodes))
        self._model.prefill(self._inputs.prefill_batch(exact, ints, parts))


def _prompt_shapes(limits: RunnerLimits) -> list[PrefillShape]:
    """Steps of prompts that begin: their keys are what the step itself projects."""
    num_prompts = min(MAX_GRAPH_PROMPTS, limits.max_batch_size)
    return [
        PrefillShape(
            num_tokens=size,
            num_prompts=num_prompts,
            num_decodes=0,
            num_choosing=num_prompts,
            num_keys=0,
            max_queries=size,
        )
        for size in PROMPT_SIZES
        if size <= limits.max_prefill
    ]


def _mixed_shapes(limits: RunnerLimits) -> list[PrefillShape]:
    """Steps that continue prompts, or decode sequences beside them."""
    nums_decodes = sorted({min(FEW_DECODES, limits.max_batch_size), limits.max_batch_size})
    return [
        PrefillShape(
            num_tokens=size,
            num_prompts=min(MAX_GRAPH_PROMPTS, limits.max_batch_size),
            num_decodes=num_decodes,
            num_choosing=limits.max_batch_size,
            num_keys=limits.max_context + size,
            max_queries=size,
        )
        for num_decodes in nums_decodes
        for size in MIXED_SIZES
        if size <= limits.max_prefill
    ]


def _capture(work: Callable[[], None], pool: Any) -> torch.cuda.CUDAGraph:
    """What is enqueued by ``work``, which has run once, as a graph."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        work()
    graph.replay()  # the first time takes longer
    return graph
