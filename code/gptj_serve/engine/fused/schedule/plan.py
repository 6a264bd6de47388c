"""What one step of continuous batching computes, and who runs it. No torch here.

A step is planned without knowing the tokens of the step before it: those are still being computed, and lie
on the device when the next step needs them. The runner keeps every sequence's token ids there (its
*history*, one row a slot), so a plan names positions, and ids only for what the host knows: prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from gptj_serve.engine.scheduler import Limits
from gptj_serve.engine.step_loop import StepRunner
from gptj_serve.request import GenerationRequest


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence's part of a step: the tokens from position ``start`` on are computed and cached.

    A row with ``start`` 0 begins its slot anew: nothing of the slot's history stays. After it a
    sequence's rows follow each other without a gap, one a step at most. What a sequence has generated
    stands in its history, from position ``len(prompt_ids)`` on.

    Attributes:
        sequence: Which one it is: a number that no other sequence of the scheduler's has.
        call: The same number for all sequences that came together.
        request: What the sequence was asked to be.
        slot: Row of the runner's per-sequence state, 0..max_batch_size-1; its own while it runs.
        blocks: Ids of the cache blocks that hold its positions, in order; enough for all computed here.
            Read when the step is launched, not later.
        start: Position of the first token computed. All before it are cached.
        token_ids: The ids of those tokens, one at least; None for the one token that an earlier step
            chose, whose id the device knows alone. After a preemption they are those of the prompt and
            of what had been generated.
        samples: A token is chosen after the last one: it gets the position ``end``, which is below
            ``max_context``, and is the sequence's number ``end - len(prompt_ids)`` counted from 0.
    """

    sequence: int
    call: int
    request: GenerationRequest
    slot: int
    blocks: Sequence[int]
    start: int
    token_ids: tuple[int, ...] | None
    samples: bool

    @property
    def end(self) -> int:
        """Position after the last token computed."""
        return self.start + (1 if self.token_ids is None else len(self.token_ids))


@dataclass(frozen=True, slots=True)
class ContinuousStep:
    """What one step computes; no sequence, slot or block occurs twice in it.

    Attributes:
        prefills: Chunks of prompts (and of sequences that are computed again after a preemption).
        decodes: One token a sequence; all of them sample.
    """

    prefills: tuple[Row, ...]
    decodes: tuple[Row, ...]

    @property
    def calls(self) -> set[int]:
        """The calls whose sequences have a part in it."""
        return {row.call for row in (*self.prefills, *self.decodes)}

    @property
    def sampled_rows(self) -> tuple[Row, ...]:
        """The rows that choose a token, in the order of the results."""
        return (*(row for row in self.prefills if row.samples), *self.decodes)


@dataclass(frozen=True, slots=True)
class RunnerLimits(Limits):
    """What a loaded runner can hold; it has a slot for each sequence that may run.

    Attributes:
        block_size: Positions in one cache block.
        num_blocks: Cache blocks that sequences may use, ids 0..num_blocks-1.
        prefill_chunk: Tokens in one step at most while sequences are being decoded, theirs included (but
            half of it is for prompts in any case): bounds how long those wait.
        max_prefill: Prompt tokens in one step at most, ever.
    """

    block_size: int
    num_blocks: int
    prefill_chunk: int
    max_prefill: int


class ContinuousRunner(StepRunner[ContinuousStep], Protocol):
    """Runs steps in the order in which they are launched, without waiting for any.

    A step may use a slot or a block that the step before it used for another sequence: everything
    happens in launch order on the device.
    """

    name: str
    limits: RunnerLimits
