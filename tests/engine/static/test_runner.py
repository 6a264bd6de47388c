"""Steps of static batches: each row's history, and rows whose sequence has ended."""

from collections.abc import Sequence

import torch

from gptj_serve.engine.scheduler import HeldSequence, Limits
from gptj_serve.engine.static.runner import StaticRunner
from gptj_serve.engine.static.scheduler import Decode, Prefill, StaticScheduler, StaticStep
from gptj_serve.engine.step_loop import StepLoop
from gptj_serve.request import EndEvent, GenerationRequest, SamplingParams

VOCAB = 20


class Scripted:
    """A backend whose logits are given."""

    name = "scripted"
    limits = Limits(3, 16, VOCAB)

    def __init__(self) -> None:
        self.logits_BV = torch.zeros(3, VOCAB)
        self.fed: list[int] = []
        self.is_broken = False

    def prefill(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        return self.logits_BV[: len(prompts)]

    def decode(self, token_ids: Sequence[int]) -> torch.Tensor:
        self.fed = list(token_ids)
        if self.is_broken:
            raise KeyError("on purpose")
        return self.logits_BV[: len(token_ids)]

    def reset(self) -> None: ...


def held(name: str, prompt_ids: tuple[int, ...], **sampling: float) -> HeldSequence:
    request = GenerationRequest(name, prompt_ids, SamplingParams(max_new_tokens=9, **sampling))  # type: ignore[arg-type]
    return HeldSequence((0, name), request, 0, 0.0)


def test_a_batch_from_its_prompts_on() -> None:
    """Each row counts its own ids, whatever lay in its slot before; who has ended chooses nothing."""
    backend = Scripted()
    runner = StaticRunner(backend, torch.device("cpu"))
    backend.logits_BV[:, 5:8] = torch.tensor([4.0, 3.0, 2.0])
    for _ in range(2):  # the second batch has the first one's slots
        rows = [
            held("a", (5,), repetition_penalty=3.0),
            held("b", (1, 2, 3)),
            held("c", (6,), repetition_penalty=9.0),
        ]
        chosen = runner.launch(Prefill(tuple(rows))).results()
        assert [[one.token_id for one in row] for row in chosen] == [[6], [5], [5]]
        for row, (token,) in zip(rows, chosen, strict=True):
            row.generated_ids.append(token.token_id)
        backend.logits_BV[1] = float("nan")
        chosen = runner.launch(Decode((rows[0], None, rows[2]))).results()
        assert [[one.token_id for one in row] for row in chosen] == [[7], [], [7]]
        assert backend.fed == [6, 0, 5]
        backend.logits_BV[1] = backend.logits_BV[0]


def test_a_step_that_fails_gives_up_its_batch_and_the_next_is_served() -> None:
    backend = Scripted()
    scheduler = StaticScheduler(
        max_batch_size=3, max_context=16, vocab_size=VOCAB, max_queue=9, batch_wait_s=0.0
    )
    loop = StepLoop[StaticStep](scheduler, StaticRunner(backend, torch.device("cpu")), steps_ahead=0)
    ends = []
    for is_broken in (True, False):
        backend.is_broken = is_broken
        name = f"broken is {is_broken}"
        scheduler.add([((0, name), held(name, (1,)).request)], 0.0)
        while not scheduler.is_idle:
            events, _ = loop.step()
            ends += [(event.request_id, event.reason) for event in events if isinstance(event, EndEvent)]
    assert ends == [("broken is True", "failed"), ("broken is False", "length")]


def test_a_prompt_with_a_wrong_row_is_told() -> None:
    backend = Scripted()
    backend.logits_BV[0] = float("nan")
    ((token,),) = StaticRunner(backend, torch.device("cpu")).launch(Prefill((held("a", (1,)),))).results()
    assert token.error is not None
    assert "finite" in token.error.message
