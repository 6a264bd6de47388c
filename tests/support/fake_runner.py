"""A runner without a model: tokens follow from the ids before them; a breach of contract is an error."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gptj_serve.engine.fused.schedule.plan import ContinuousStep, Row, RunnerLimits
from gptj_serve.engine.scheduler import HeldSequence, Sampled
from gptj_serve.request import GenerationRequest, SamplingParams

EOS = 9
VOCAB_SIZE = 10


def limits(**changes: int) -> RunnerLimits:
    """Small limits: four slots, 16 blocks of 4 positions, chunks of 4, prefills of 8."""
    options = {
        "max_batch_size": 4,
        "max_context": 32,
        "vocab_size": VOCAB_SIZE,
        "block_size": 4,
        "num_blocks": 16,
        "prefill_chunk": 4,
        "max_prefill": 8,
        **changes,
    }
    return RunnerLimits(**options)


def request(
    prompt: int = 3, new: int = 2, *, first: int = 1, eos: bool = False, **more: Any
) -> GenerationRequest:
    """A request for ``new`` tokens whose prompt has ``prompt`` ids; ``first`` is the first of them."""
    prompt_ids = tuple((first + i) % VOCAB_SIZE for i in range(prompt))
    return GenerationRequest("r", prompt_ids, SamplingParams(new), (EOS,) if eos else (), **more)


def next_token(ids: Sequence[int]) -> int:
    """What the fake model says after these ids."""
    return zlib.crc32(bytes(ids)) % VOCAB_SIZE


def ids_of(request: GenerationRequest, length: int) -> list[int]:
    """Prompt and continuation, never ended, up to a length."""
    ids = list(request.prompt_ids)
    while len(ids) < length:
        ids.append(next_token(ids))
    return ids[:length]


def alone(request: GenerationRequest) -> tuple[list[int], str]:
    """The tokens that a sequence gets alone, and why it ends."""
    tokens = ids_of(request, request.num_tokens_needed)[len(request.prompt_ids) :]
    for number, token_id in enumerate(tokens, start=1):
        if token_id in request.eos_token_ids:
            return tokens[:number], "eos_token"
    return tokens, "length"


@dataclass
class Slot:
    """The runner's state of one sequence: ids known, and how many of them are cached."""

    sequence: int
    history: list[int] = field(default_factory=list)
    num_cached: int = 0


@dataclass(frozen=True)
class FakePending:
    """Results of a step; ``before`` is called when they are asked for, and may raise."""

    sampled: list[list[Sampled]]
    before: Callable[[], None]

    def results(self) -> list[list[Sampled]]:
        self.before()
        return self.sampled


class FakeRunner:
    """Meets `StepRunner`. Steps are computed at launch, as on a device: in order, whatever is known of them.

    ``before_launch`` and ``before_results`` are called with the number of the step and may raise.
    """

    name = "fake"

    def __init__(self, runner_limits: RunnerLimits) -> None:
        self.limits = runner_limits
        self.steps: list[ContinuousStep] = []
        self.num_starts = 0
        self.before_launch: Callable[[int], None] = lambda _: None
        self.before_results: Callable[[int], None] = lambda _: None
        self._num_launched = 0
        self._slots: dict[int, Slot] = {}
        self._cache: dict[tuple[int, int], tuple[HeldSequence, int, int]] = {}

    def launch(self, step: ContinuousStep) -> FakePending:
        number = self._num_launched
        self._num_launched += 1
        self.before_launch(number)
        self.steps.append(step)
        self._check_limits(step)
        # results come in the order of the rows, the work itself in any: rows must not touch each other
        tokens = {row.slot: self._run(row) for row in (*step.decodes, *step.prefills)}
        sampled = [[Sampled(tokens[row.slot])] for row in step.sampled_rows]
        return FakePending(sampled, lambda: self.before_results(number))

    def release(self) -> None:
        """Nothing to give up."""

    def _check_limits(self, step: ContinuousStep) -> None:
        rows = (*step.prefills, *step.decodes)
        assert rows
        assert len({row.slot for row in rows}) == len({row.sequence for row in rows}) == len(rows)
        assert all(0 <= row.slot < self.limits.max_batch_size for row in rows)
        blocks = [block for row in rows for block in row.blocks]
        assert len(set(blocks)) == len(blocks)
        assert all(0 <= block < self.limits.num_blocks for block in blocks)
        assert sum(row.end - row.start for row in step.prefills) <= self.limits.max_prefill
        assert all(row.token_ids for row in step.prefills)
        assert all(row.token_ids is None and row.samples for row in step.decodes)
        assert all(row.end <= self.limits.max_context - row.samples for row in rows)

    def _run(self, row: Row) -> int:
        if row.start == 0:
            self._slots[row.slot] = Slot(row.sequence)
            self.num_starts += 1
        slot = self._slots[row.slot]
        assert slot.sequence == row.sequence, "the slot is another sequence's"
        assert slot.num_cached == row.start, "positions are computed once and in order"
        if row.token_ids is None:
            assert len(slot.history) == row.end, "the token is none that was chosen before"
        else:
            assert list(row.token_ids) == ids_of(row.request, row.end)[row.start :]
            slot.history[row.start :] = row.token_ids
        for position in range(row.end):
            self._touch(row, position, slot.history[position])
        slot.num_cached = row.end
        token_id = next_token(slot.history[: row.end])
        if row.samples:
            slot.history.append(token_id)
        return token_id

    def _touch(self, row: Row, position: int, token_id: int) -> None:
        """Write a new position into the cache, or find an old one there as it was written."""
        index, offset = divmod(position, self.limits.block_size)
        place, content = (row.blocks[index], offset), (row.sequence, position, token_id)
        if position >= row.start:
            self._cache[place] = content
        assert self._cache.get(place) == content, "the cache was overwritten"
