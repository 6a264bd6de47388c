"""Runs the continuous scheduler's steps on one model, as CUDA graphs where they are short.

The host waits for nothing but results.
"""

from collections.abc import Sequence

import torch

from gptj_serve.engine.device_errors import batch_errors
from gptj_serve.engine.fused.graphs import DecodeGraphs, PrefillGraphs
from gptj_serve.engine.fused.greedy import GreedyChoice, is_greedy
from gptj_serve.engine.fused.kernels.protocol import BLOCK_SIZE, Kernels, State
from gptj_serve.engine.fused.model import FusedModel
from gptj_serve.engine.fused.schedule.grouping import groups, joining
from gptj_serve.engine.fused.schedule.plan import ContinuousStep, Row, RunnerLimits
from gptj_serve.engine.fused.step_inputs import StepInputs
from gptj_serve.engine.sampling.results import Choice
from gptj_serve.engine.sampling.sampler import Sampler, SamplerRow
from gptj_serve.engine.scheduler import Sampled


class FusedRunner:
    """Meets `gptj_serve.engine.fused.schedule.plan.ContinuousRunner`.

    Args:
        state: The model and its memory.
        kernels: Made for that state.
        limits: What the memory holds.

    Attributes:
        state: As given.
        graphs: What decodes batches.
        prefill_graphs: What computes prompts.
    """

    name = "fused"

    def __init__(self, state: State, kernels: Kernels, limits: RunnerLimits) -> None:
        self.limits = limits
        self.state = state
        self._max_decode_rows = kernels.max_decode_rows
        self._model = FusedModel(state, kernels)
        # the row after the last slot's is for padding
        self._sampler = Sampler(state.history_SC[: limits.max_batch_size], limits.vocab_size)
        self._inputs = StepInputs(limits, state.history_SC.shape[1])
        device = state.history_SC.device
        self.graphs = DecodeGraphs(self._model, self._inputs, limits.max_batch_size, device)
        self.prefill_graphs = PrefillGraphs(
            self._model, self._inputs, limits, can_capture=kernels.can_attend_prompts, device=device
        )

    @torch.inference_mode()
    def launch(self, step: ContinuousStep) -> "RunningStep":
        """Start a step; see `StepRunner.launch`."""
        self._check(step)
        parts: list[Part] = []
        together = joining(step)
        num_prefills = sum(row.samples for row in step.prefills)
        with batch_errors("a step"):
            if step.prefills:
                choice = self.prefill(step.prefills, [step.decodes[place] for place in together])
                if choice is not None:
                    places = [num_prefills + place for place in together]
                    parts.append(([*places, *range(num_prefills)], choice))
            for group in groups(step.decodes, self._max_decode_rows, without=together):
                choice = self._decode([step.decodes[place] for place in group])
                parts.append(([num_prefills + place for place in group], choice))
        return RunningStep(parts)

    def release(self) -> None:
        """Nothing to give up: slots and blocks are the scheduler's."""

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

    def prefill(self, prompts: Sequence[Row], decodes: Sequence[Row]) -> Choice | GreedyChoice | None:
        """Compute chunks of prompts, and decode sequences within the same products.

        Returns:
            The tokens of `decodes`, then of the prompts that sample; None if there are none.
        """
        self.prefill_graphs.prefill(prompts, decodes)
        choosing = [*decodes, *(row for row in prompts if row.samples)]
        return self._choose(choosing) if choosing else None

    def _decode(self, rows: Sequence[Row]) -> Choice | GreedyChoice:
        self.graphs.decode(rows)
        return self._choose(rows)

    def _choose(self, rows: Sequence[Row]) -> Choice | GreedyChoice:
        scratch = self.state.scratch
        # the tokens' copy starts here and now: what follows in this step writes to the same memory
        if all(is_greedy(row) for row in rows):
            return GreedyChoice(scratch.chosen_2T, len(rows))  # the kernels have chosen
        sampler_rows = [SamplerRow(row.request, row.slot, row.end) for row in rows]
        return self._sampler.choose(scratch.logits_TV[: len(rows)], sampler_rows)


class RunningStep:
    """Meets `gptj_serve.engine.step_loop.PendingStep`.

    Args:
        parts: All choices of the step.
    """

    def __init__(self, parts: Sequence["Part"]) -> None:
        self._parts = parts

    def results(self) -> list[list[Sampled]]:
        """Wait; see `PendingStep.results`."""
        by_place = {
            place: [result]
            for places, choice in self._parts
            for place, result in zip(places, choice.results(), strict=True)
        }
        return [by_place[place] for place in sorted(by_place)]


Part = tuple[list[int], Choice | GreedyChoice]
"""Choices, and where in the results each of their rows goes."""
