"""What a front asks of the engine: a `GenerationRequest` for each sequence, in whatever schema it came."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import msgspec

from gptj_serve.errors import ServingError

IdLists = tuple[tuple[int, ...], ...]
"""Several sequences of token ids."""

_WHEN_DRAWING = {"when_drawing": True}


DEFAULT_MODEL_NAME = "gpt-j"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreParams:
    """What changes the scores of tokens; the names and meanings are those of Transformers' ``generate``.

    Each field's default changes nothing. The fields up to ``typical_p`` are used only when drawing.

    Attributes:
        do_sample: Draw from the distribution instead of taking its maximum.
        temperature: > 0; divides the logits.
        top_k: Keep the k most likely tokens; 0 keeps all.
        top_p: Keep the smallest set of tokens with this much probability, (0, 1]; 1 keeps all.
        min_p: Keep tokens with at least this share of the likeliest one's probability, 0..1; 0 keeps all.
        typical_p: Keep the most typical tokens with this much probability, (0, 1]; 1 keeps all.
        repetition_penalty: > 0; 1 is none. It counts prompt and generated tokens.
        presence_penalty: -2..2, subtracted from the logits of tokens that were generated already.
        frequency_penalty: -2..2, the same times how often they were generated. Both are OpenAI's, for which
            the prompt does not count.
        logit_bias: Token ids and what is added to their logits, -100..100. Penalties and bias come first.
        no_repeat_ngram_size: No sequence of so many tokens comes twice, counting the prompt; 0 allows all.
        bad_words_ids: Sequences of at least one id that are never completed; they may begin in the prompt.
        suppress_tokens: Ids that are never chosen.
        begin_suppress_tokens: Ids that are not chosen first.
    """

    do_sample: bool = field(default=False, metadata=_WHEN_DRAWING)
    temperature: float = field(default=1.0, metadata=_WHEN_DRAWING)
    top_k: int = field(default=0, metadata=_WHEN_DRAWING)
    top_p: float = field(default=1.0, metadata=_WHEN_DRAWING)
    min_p: float = field(default=0.0, metadata=_WHEN_DRAWING)
    typical_p: float = field(default=1.0, metadata=_WHEN_DRAWING)
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    no_repeat_ngram_size: int = 0
    bad_words_ids: IdLists = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()


_ALWAYS = {one.name: one.default for one in fields(ScoreParams) if not one.metadata}
ALWAYS_USED = tuple(_ALWAYS)
"""The names of the fields of `ScoreParams` that are used with and without drawing."""
USED_WHEN_DRAWING = tuple(one.name for one in fields(ScoreParams) if one.metadata)
"""The names of the fields that are used only when drawing."""


@dataclass(frozen=True, slots=True)
class SamplingParams(ScoreParams):
    """How the next token is chosen.

    Attributes:
        max_new_tokens: How many tokens are generated at most, >= 1.
        min_new_tokens: There is no end-of-sequence token before this many tokens, 0..max_new_tokens.
        bad_words: As ``bad_words_ids``, but the whole sequence has to be generated, which is vLLM's meaning.
        seed: 0..2**64-1. The same seed and prompt give the same tokens whatever else runs.
        sequence_index: Which of several sequences for one prompt this is; part of the random key.
        changes_scores: Whether the tokens are not simply the logits' maxima, end-of-sequence tokens aside.
    """

    max_new_tokens: int
    min_new_tokens: int = 0
    bad_words: IdLists = field(default=(), kw_only=True)
    seed: int = field(default=0, kw_only=True)
    sequence_index: int = field(default=0, kw_only=True)
    changes_scores: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # it is asked for at every step
        changed = any(getattr(self, name) != default for name, default in _ALWAYS.items())
        object.__setattr__(self, "changes_scores", bool(self.do_sample or self.bad_words or changed))


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A sequence to generate.

    Attributes:
        request_id: The request's id, unique among the requests of a connection.
        prompt_ids: The prompt, at least one token id, each 0..vocab_size-1.
        sampling: How tokens are chosen.
        eos_token_ids: Token ids that end the sequence (the ending token is reported too).
        logprobs: Report each token's log-probability under the model's own distribution
            (before temperature, filters and penalties).
        num_top_logprobs: Report this many of the most likely tokens beside each token, 0..20; needs
            ``logprobs``.
        timeout_s: Seconds from submission after which the request fails with `DeadlinePassed`.
        reproducible: The client chose the seed and expects the same tokens each time. Logits differ in
            their last digits with the shape of the batch, so only sequences of one call may share it.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    eos_token_ids: tuple[int, ...] = ()
    logprobs: bool = False
    num_top_logprobs: int = 0
    timeout_s: float | None = None
    reproducible: bool = False

    @property
    def num_tokens_needed(self) -> int:
        """How many positions the sequence may fill: prompt plus new tokens."""
        return len(self.prompt_ids) + self.sampling.max_new_tokens


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a front has to know about the engine; it is sent on every new connection.

    Attributes:
        engine: Name of the engine that runs ("hf", "deepspeed", "fused").
        model_dir: Directory the weights came from.
        max_context: Prompt plus new tokens at most.
        max_batch_size: Sequences in one batch at most.
        vocab_size: Number of token ids the model knows.
        eos_token_ids: Token ids that end a sequence.
        batching: "static" (a batch runs until all of it has ended) or "continuous".
        defaults: Fields of `ScoreParams` that the model's own files set, for requests that do not.
        model_name: What clients are told that the model is called.
    """

    engine: str
    model_dir: str
    max_context: int
    max_batch_size: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    batching: str = "static"
    defaults: Mapping[str, Any] = field(default_factory=dict)
    model_name: str = DEFAULT_MODEL_NAME

    def __post_init__(self) -> None:
        defaults = {name: _frozen(value) for name, value in self.defaults.items()}
        object.__setattr__(self, "defaults", defaults)


@dataclass(frozen=True, slots=True)
class Timings:
    """Where a finished sequence's time went, in seconds since it was submitted."""

    queue_s: float
    first_token_s: float
    total_s: float


class TokenEvent(msgspec.Struct, frozen=True, array_like=True):
    """One generated token.

    Attributes:
        request_id: Which sequence it belongs to.
        token_id: The token.
        logprob: Its log-probability; None unless the request asked for it.
        top_logprobs: The most likely tokens and their log-probabilities, the likeliest first.
        connection: The engine's number of the front's connection.
    """

    request_id: str
    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float | None], ...] = ()
    connection: int = 0


class EndEvent(msgspec.Struct, frozen=True):
    """The one terminal event of a sequence.

    Attributes:
        request_id: Which sequence ended.
        reason: "length", "eos_token", "cancelled" or "failed".
        error: What to tell the client; set when the reason is "failed", else None.
        timings: None when the sequence never ran.
        connection: The engine's number of the front's connection.
    """

    request_id: str
    reason: str
    error: ServingError | None = None
    timings: Timings | None = None
    connection: int = 0


Event = TokenEvent | EndEvent
"""What happens to a sequence."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What the engine does now and has done since it started. Counts are of sequences unless said otherwise.

    Attributes:
        num_waiting: Sequences that are accepted but not started.
        num_running: Sequences in the running batch.
        num_steps: Steps of the step loop so far.
        step_age_s: Seconds since the step loop last moved (ended a step, or had nothing to do).
        num_prompt_tokens: Tokens of all prompts that were started.
        num_generated_tokens: Tokens that were generated.
        num_finished: Sequences that ended with "length" or "eos_token".
        num_cancelled: Sequences that ended with "cancelled".
        num_failed: Sequences that ended with "failed".
        num_preempted: How often a running sequence gave its cache to an older one; it goes on later.
        cache_tokens: Tokens that the KV cache holds for the running batch, padding included.
        cache_capacity_tokens: Tokens that it can hold.
        is_draining: Whether nothing new is accepted.
    """

    num_waiting: int = 0
    num_running: int = 0
    num_steps: int = 0
    step_age_s: float = 0.0
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    num_finished: int = 0
    num_cancelled: int = 0
    num_failed: int = 0
    num_preempted: int = 0
    cache_tokens: int = 0
    cache_capacity_tokens: int = 0
    is_draining: bool = False


def _frozen(value: Any) -> Any:
    """The value with tuples where JSON has lists."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
