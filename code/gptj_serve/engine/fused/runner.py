"""Runs the continuous scheduler's steps on one model: prompts as they come, decoding as CUDA graphs.

A graph holds one batch size. Positions, cache places and block tables lie in device memory that each launch
fills, so one graph serves every position. The host waits for nothing but results.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from gptj_serve.engine.device_errors import batch_errors
from gptj_serve.engine.fused.kernels.protocol import BLOCK_SIZE, Kernels, State
from gptj_serve.engine.fused.model import FusedModel
from gptj_serve.engine.fused.sampling.greedy import GreedyChoice, is_greedy
from gptj_serve.engine.fused.sampling.results import Choice
from gptj_serve.engine.fused.sampling.sampler import DeviceSampler, warm_up
from gptj_serve.engine.fused.schedule.grouping import groups, joining
from gptj_serve.engine.fused.schedule.plan import ContinuousStep, Row, RunnerLimits
from gptj_serve.engine.fused.step_inputs import StepWords
from gptj_serve.engine.scheduler import Running, Sampled
from gptj_serve.errors import StartupError
from gptj_serve.request import GenerationRequest, SamplingParams

CHECK_TOKENS = 40
MAX_APART = 0.05
"""Root mean square of what the two ways to decode may differ by, over that of the logits."""

DECODE_SIZES = (*range(1, 17), 24, 32, 48, 64, 96, 128, 192, 256)
"""Batch sizes that have a graph; a batch is padded to the next one."""

PREFILL_SIZES = (2048, 512, 192, 64, 16)
"""Prompts that warm the libraries up: other sizes take other kernels, which are loaded at first use."""


class FusedRunner:
    """Meets `gptj_serve.engine.fused.schedule.plan.StepRunner`.

    Args:
        state: The model and its memory.
        kernels: Made for that state.
        limits: What the memory holds.
    """

    name = "fused"

    def __init__(self, state: State, kernels: Kernels, limits: RunnerLimits) -> None:
        self.limits = limits
        self._state = state
        self._kernels = kernels
        self._model = FusedModel(state, kernels)
        self._sampler = DeviceSampler(state.history_SC, limits.vocab_size)
        self._words = StepWords(limits, state.history_SC.shape[1])
        sizes = [size for size in DECODE_SIZES if size < limits.max_batch_size]
        self._decode_sizes = (*sizes, limits.max_batch_size)
        self._decode_words = torch.zeros(
            self._words.num_decode_words(limits.max_batch_size),
            dtype=torch.int32,
            device=state.history_SC.device,
        )
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    @torch.inference_mode()
    def launch(self, step: ContinuousStep) -> "RunningStep":
        """Start a step; see `StepRunner.launch`."""
        self._check(step)
        parts: list[Part] = []
        together = joining(step)
        num_prefills = sum(row.samples for row in step.prefills)
        with batch_errors("a step"), self._memory_given_back():
            if step.prefills:
                choice = self._prefill(step.prefills, [step.decodes[place] for place in together])
                if choice is not None:
                    places = [num_prefills + place for place in together]
                    parts.append(([*places, *range(num_prefills)], choice))
            for group in groups(step.decodes, self._kernels.max_decode_rows, without=together):
                choice = self._decode([step.decodes[place] for place in group])
                parts.append(([num_prefills + place for place in group], choice))
        return RunningStep(parts)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Run everything once and capture the graphs, the largest first: all use the memory of that one."""
        pool = None
        for size in reversed(self._decode_sizes):
            tokens = self._words.decode([], size, self._decode_words)
            self._model.decode(tokens)
            if self._is_cuda:
                torch.cuda.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool):
                    self._model.decode(tokens)
                pool = pool or graph.pool()
                graph.replay()  # the first time takes longer
                self._graphs[size] = graph
        for num_tokens in PREFILL_SIZES:
            self._warm_up_prefill(num_tokens)
        self._warm_up_mixed()
        logits_TV = self._state.scratch.logits_TV
        warm_up(logits_TV.device, logits_TV.dtype, self.limits)

    @torch.inference_mode()
    def check(self) -> None:
        """Decode one token both ways, through the kernels and through cuBLAS.

        Raises:
            StartupError: The two are far apart, or not numbers: something is wrong with the kernels on this
                GPU, or with the weights.
        """
        length = min(CHECK_TOKENS, self.limits.max_context - 1)
        prompt_ids = tuple(number % self.limits.vocab_size for number in range(1, length + 1))
        (row,) = self._prefill_alone(prompt_ids, (0,))
        own_V, other_V = self._both_ways(replace(row, start=row.end, token_ids=None))
        apart = float((own_V - other_V).norm() / other_V.norm())
        if not apart <= MAX_APART:
            raise StartupError(
                f"the fused engine's kernels and cuBLAS do not agree on the next token ({apart:.1%} apart, "
                f"{MAX_APART:.0%} allowed): wrong weights, or kernels that do not work on this GPU; "
                "GPTJ_ENGINE=hf tells which"
            )

    def _both_ways(self, row: Row) -> list[torch.Tensor]:
        """The logits of one decoded token, through the kernels and through cuBLAS."""
        found = []
        for through_cublas in (False, True):
            tokens = self._words.decode([row], 1, self._decode_words)
            self._model.decode(tokens, through_cublas=through_cublas)
            found.append(self._state.scratch.logits_TV[0].clone())
        return found

    def _warm_up_prefill(self, num_tokens: int) -> None:
        """A prompt of that length, and one more chunk of it, which finds the first in the cache."""
        limits = self.limits
        num_tokens = min(num_tokens, limits.max_prefill, limits.max_context - 1)
        starts = (0, num_tokens) if 2 * num_tokens < limits.max_context else (0,)
        self._prefill_alone((0,) * num_tokens, starts)

    def _warm_up_mixed(self) -> None:
        """Two prompts in one step, and a sequence that is decoded beside them."""
        (row,) = self._prefill_alone((0, 0), (0,))
        prompt = replace(row, samples=False)
        self._prefill([prompt, prompt], [replace(row, start=row.end, token_ids=None)])

    def _prefill_alone(self, token_ids: tuple[int, ...], starts: Sequence[int]) -> list[Row]:
        """Prefill these tokens at each of these positions, in the cache's first blocks."""
        request = GenerationRequest("warm-up", token_ids, SamplingParams(1))
        running = Running((0, request.request_id), request, call=0, arrived_s=0.0)
        blocks = range(-(-(starts[-1] + len(token_ids) + 1) // BLOCK_SIZE))
        rows = [Row(running, 0, blocks, start, token_ids, samples=True) for start in starts]
        for row in rows:
            self._prefill([row], [])
        return rows

    @contextmanager
    def _memory_given_back(self) -> Iterator[None]:
        """After a step for which there was no memory: what lies about in pieces is of no use to the next."""
        try:
            yield
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            raise

    @property
    def _is_cuda(self) -> bool:
        return self._decode_words.is_cuda

    def _check(self, step: ContinuousStep) -> None:
        limits = self.limits
        rows = (*step.prefills, *step.decodes)
        num_prompt_tokens = sum(row.end - row.start for row in step.prefills)
        if num_prompt_tokens > limits.max_prefill:
            raise ValueError(f"{num_prompt_tokens} prompt tokens in a step; at most {limits.max_prefill}")
        if len(rows) > limits.max_batch_size:
            raise ValueError(f"{len(rows)} rows in a step; at most {limits.max_batch_size}")
        for row in rows:
            if not 0 <= row.slot < limits.max_batch_size:
                raise ValueError(f"slot {row.slot}; must be 0 to {limits.max_batch_size - 1}")
            if row.end > limits.max_context or row.end > len(row.blocks) * BLOCK_SIZE:
                raise ValueError(
                    f"a row ends at position {row.end}; its {len(row.blocks)} blocks hold "
                    f"{len(row.blocks) * BLOCK_SIZE}, the context {limits.max_context}"
                )

    def _decode(self, rows: Sequence[Row]) -> Choice | GreedyChoice:
        size = next(size for size in self._decode_sizes if size >= len(rows))
        tokens = self._words.decode(rows, size, self._decode_words)
        if self._graphs:
            self._graphs[size].replay()
        else:
            self._model.decode(tokens)
        return self._choose(rows)

    def _prefill(self, prompts: Sequence[Row], decodes: Sequence[Row]) -> Choice | GreedyChoice | None:
        step = self._words.prefill(prompts, decodes, self._decode_words.device)
        history_T = self._state.history_SC.view(-1)
        history_T.index_copy_(0, step.tokens.history_rows_T[len(decodes) :].long(), step.ids_T.long())
        self._model.prefill(step)
        choosing = [*decodes, *(row for row in prompts if row.samples)]
        return self._choose(choosing) if choosing else None

    def _choose(self, rows: Sequence[Row]) -> Choice | GreedyChoice:
        scratch = self._state.scratch
        choice: Choice | GreedyChoice
        if all(is_greedy(row) for row in rows):
            choice = GreedyChoice(scratch.chosen_2T, len(rows))  # the kernels have chosen
        else:
            choice = self._sampler.choose(scratch.logits_TV[: len(rows)], rows)
        choice.to_host()  # now: what follows in this step writes to the same memory
        return choice


class RunningStep:
    """Meets `gptj_serve.engine.fused.schedule.plan.PendingStep`.

    Args:
        parts: All choices of the step.
    """

    def __init__(self, parts: Sequence["Part"]) -> None:
        self._parts = parts

    def results(self) -> list[Sampled]:
        """Wait; see `PendingStep.results`."""
        by_place = {
            place: result
            for places, choice in self._parts
            for place, result in zip(places, choice.results(), strict=True)
        }
        return [by_place[place] for place in sorted(by_place)]


Part = tuple[list[int], Choice | GreedyChoice]
"""Choices, and where in the results each of their rows goes."""
