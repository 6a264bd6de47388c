"""What the parameters of one sequence mean for its scores, worked out once and not at every step."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gptj_serve.engine.sampling.uniform import sequence_state
from gptj_serve.request import SamplingParams


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """What stays the same while a sequence is generated. None: the filter does nothing.

    Attributes:
        num_prompt: Tokens of its prompt.
        changes_scores: Its tokens are not simply the logits' maximum.
        min_new_tokens: 0 if there is no end of sequence to hold back.
        eos_token_ids: Those that the vocabulary has.
        bias_ids: int64, each once; those that the vocabulary has.
        bias_values: float64, beside them.
        penalises_generated: It has a presence or a frequency penalty.
        presence_penalty: See `SamplingParams`.
        frequency_penalty: See `SamplingParams`.
        repetition_penalty: See `SamplingParams`.
        temperature: See `SamplingParams`.
        last_of_top_k: k - 1.
        rest_of_top_p: 1 - p.
        typical_p: See `SamplingParams`.
        draw_state: What its random numbers have in common; None if it does not sample.
    """

    num_prompt: int
    changes_scores: bool
    min_new_tokens: int
    eos_token_ids: tuple[int, ...]
    bias_ids: np.ndarray
    bias_values: np.ndarray
    penalises_generated: bool
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float | None
    temperature: float | None
    last_of_top_k: int | None
    rest_of_top_p: float | None
    typical_p: float | None
    draw_state: int | None


def profile(
    sampling: SamplingParams, num_prompt: int, eos_token_ids: Sequence[int], vocab_size: int
) -> Profile:
    """Work out a sequence's constants. Token ids outside the vocabulary are dropped."""
    eos = tuple(token_id for token_id in eos_token_ids if 0 <= token_id < vocab_size)
    # of several values for one token the last one counts
    bias = {
        token_id: value for token_id, value in dict(sampling.logit_bias).items() if 0 <= token_id < vocab_size
    }
    penalises_generated = bool(sampling.presence_penalty or sampling.frequency_penalty)
    repetition = sampling.repetition_penalty if sampling.repetition_penalty != 1.0 else None
    draws = sampling.do_sample
    return Profile(
        num_prompt=num_prompt,
        changes_scores=draws or penalises_generated or repetition is not None or bool(bias),
        min_new_tokens=sampling.min_new_tokens if eos else 0,
        eos_token_ids=eos,
        bias_ids=np.array(list(bias), dtype=np.int64),
        bias_values=np.array(list(bias.values()), dtype=np.float64),
        penalises_generated=penalises_generated,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=repetition,
        temperature=sampling.temperature if draws and sampling.temperature != 1.0 else None,
        last_of_top_k=sampling.top_k - 1 if draws and 0 < sampling.top_k < vocab_size else None,
        rest_of_top_p=1 - sampling.top_p if draws and sampling.top_p < 1.0 else None,
        typical_p=sampling.typical_p if draws and sampling.typical_p < 1.0 else None,
        draw_state=sequence_state(sampling.seed, sampling.sequence_index) if draws else None,
    )
