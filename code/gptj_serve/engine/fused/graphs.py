"""Decoding as CUDA graphs: one a batch size, captured once and replayed with new inputs."""

from collections.abc import Sequence

import torch

from gptj_serve.engine.fused.model import FusedModel
from gptj_serve.engine.fused.schedule.plan import Row
from gptj_serve.engine.fused.step_inputs import StepInputs

DECODE_SIZES = (*range(1, 17), 24, 32, 48, 64, 96, 128, 192, 256)
"""Batch sizes that have a graph; a batch is padded to the next one."""


class DecodeGraphs:
    """Decodes batches of every size up to a largest one.

    Positions, cache places and block tables lie in device memory that each batch fills, so one graph serves
    every position. Without a GPU, and before `capture`, the model is run directly.

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
        self._words = torch.zeros(inputs.num_decode_words(max_batch_size), dtype=torch.int32, device=device)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def capture(self) -> None:
        """Run and capture every size, the largest first: all use the memory of that one."""
        pool = None
        for size in reversed(self._sizes):
            tokens = self._inputs.decode([], size, self._words)
            self._model.decode(tokens)
            if not self._words.is_cuda:
                continue
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                self._model.decode(tokens)
            pool = pool or graph.pool()
            graph.replay()  # the first time takes longer
            self._graphs[size] = graph

    def decode(self, rows: Sequence[Row], *, through_cublas: bool = False) -> None:
        """One token of each row: logits and chosen tokens go to the scratch memory.

        Args:
            rows: From one to the largest batch.
            through_cublas: Take the path of large batches, whatever the number; this one has no graphs.
        """
        size = next(size for size in self._sizes if size >= len(rows))
        tokens = self._inputs.decode(rows, size, self._words)
        if self._graphs and not through_cublas:
            self._graphs[size].replay()
        else:
            self._model.decode(tokens, through_cublas=through_cublas)
