"""Drives a runner through the continuous scheduler, and judges greedy tokens by Transformers' logits."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from transformers import GPTJForCausalLM

from gptj_serve.engine.fused.runner import FusedRunner
from gptj_serve.engine.fused.schedule.plan import ContinuousRunner, ContinuousStep, RunnerLimits
from gptj_serve.engine.fused.schedule.scheduler import ContinuousScheduler
from gptj_serve.engine.step_loop import StepLoop
from gptj_serve.request import EndEvent, GenerationRequest, SamplingParams, TokenEvent


def greedy(prompt_ids: Sequence[int], num_tokens: int) -> GenerationRequest:
    """A request for exactly so many tokens."""
    return GenerationRequest("", tuple(prompt_ids), SamplingParams(num_tokens))


class Driver:
    """A runner behind a scheduler that checks its books after every step.

    Args:
        runner: Runs the steps.
        limits: Replaces some of the runner's limits, to reach borders sooner.

    Attributes:
        steps: Every step that was launched.
        ended: Why each sequence ended.
        tokens: Each sequence's tokens.
    """

    def __init__(self, runner: FusedRunner, **limits: int) -> None:
        self.limits: RunnerLimits = replace(runner.limits, **limits)
        self.name = runner.name
        self.steps: list[ContinuousStep] = []
        self.ended: dict[str, str] = {}
        self.tokens: dict[str, list[TokenEvent]] = {}
        self._runner: ContinuousRunner = runner
        self.scheduler = ContinuousScheduler(self.limits, max_queue=1000)
        self._loop = StepLoop(self.scheduler, self, steps_ahead=1, checks=True)

    def launch(self, step: ContinuousStep) -> object:
        self.steps.append(step)
        return self._runner.launch(step)

    def release(self) -> None:
        self._runner.release()

    def run(
        self, arrivals: Mapping[int, Mapping[str, GenerationRequest]], aborts: Mapping[int, str] | None = None
    ) -> dict[str, list[TokenEvent]]:
        """Run until all is over.

        Args:
            arrivals: Requests by name, at the steps at which they arrive.
            aborts: Names of sequences that are cancelled, at the steps at which they are.

        Returns:
            Each sequence's tokens.
        """
        tokens = self.tokens
        number = 0
        while True:
            for name, request in arrivals.get(number, {}).items():
                self.scheduler.add([((0, name), replace(request, request_id=name))], float(number))
            events = []
            if aborts and number in aborts:
                events += self.scheduler.abort((0, aborts[number]), float(number))
            stepped, wait = self._loop.step()
            for event in [*events, *stepped]:
                name = event.request_id
                if isinstance(event, EndEvent):
                    assert event.error is None, event.error
                    self.ended[name] = event.reason
                else:
                    tokens.setdefault(name, []).append(event)
            number += 1
            if wait is not None and number > max(arrivals):
                return tokens


def ids(tokens: Sequence[TokenEvent]) -> list[int]:
    """Their ids."""
    return [token.token_id for token in tokens]


@torch.inference_mode()
def check_greedy(
    model: GPTJForCausalLM, prompt_ids: Sequence[int], token_ids: Sequence[int], tolerance: float
) -> int:
    """Every token must have had the largest logit, or one not smaller by more than the tolerance.

    Args:
        model: The truth, in float32.
        prompt_ids: The prompt.
        token_ids: What was generated.
        tolerance: In standard deviations of the logits.

    Returns:
        How many tokens had the largest logit.
    """
    sequence = torch.tensor([[*prompt_ids, *token_ids]], device=model.device)
    logits_TV = model(sequence).logits[0, len(prompt_ids) - 1 : -1].float()
    chosen_T = sequence[0, len(prompt_ids) :]
    gap_T = (logits_TV.max(dim=-1).values - logits_TV.gather(1, chosen_T.unsqueeze(1))[:, 0]) / logits_TV.std(
        dim=-1
    )
    assert float(gap_T.max()) <= tolerance, (len(prompt_ids), gap_T.tolist())
    return int((gap_T == 0).sum())
