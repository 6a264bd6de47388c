"""Rows of steps with prompts, on a state of `support.random_states`."""

from gptj_serve.engine.fused.kernels.protocol import BLOCK_SIZE
from gptj_serve.engine.fused.schedule.plan import Row, RunnerLimits
from gptj_serve.request import GenerationRequest, SamplingParams
from support.random_states import MAX_CONTEXT, MAX_ROWS

LIMITS = RunnerLimits(
    max_batch_size=MAX_ROWS,
    max_context=MAX_CONTEXT,
    vocab_size=1003,
    block_size=BLOCK_SIZE,
    num_blocks=40,
    prefill_chunk=64,
    max_prefill=256,
)


def row(slot: int, start: int, num_tokens: int, *, decodes: bool = False, samples: bool = True) -> Row:
    """Tokens of a sequence whose blocks lie one behind the other, ten from ten times its slot's number on."""
    token_ids = None if decodes else tuple(range(100 * slot + 1, 100 * slot + num_tokens + 1))
    request = GenerationRequest("", token_ids or (1,), SamplingParams(1))
    return Row(slot, slot, request, slot, range(10 * slot, 10 * slot + 10), start, token_ids, samples)


BEGINNING = (row(0, 0, 21), row(1, 0, 5, samples=False))
CONTINUING = (row(0, 37, 21), row(1, 0, 5), row(2, 16, 3, samples=False))
DECODES = (row(3, 30, 1, decodes=True),)
