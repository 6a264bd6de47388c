"""Generation parameters: what a client asked for, and what that means for one prompt.

Names and meanings are those of Transformers' ``generate``. The schemas check each field by itself
(`gptj_serve.serving.schemas.common_fields`); here is checked what depends on other fields, on the prompt or
on the engine.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from gptj_serve.errors import BadRequest, ContextOverflow
from gptj_serve.request import (
    ALWAYS_USED,
    USED_WHEN_DRAWING,
    IdLists,
    ModelInfo,
    SamplingParams,
    ScoreParams,
)

DEFAULT_MAX_NEW_TOKENS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters(ScoreParams):
    """What a client asked for, checked one by one; `sampling` adds what depends on the prompt.

    Attributes:
        max_new_tokens: How many tokens to generate at most; None takes what fits, at most
            `DEFAULT_MAX_NEW_TOKENS`.
        max_length: The same counted with the prompt; it wins over ``max_new_tokens``.
        min_new_tokens: There is no end of text before this many new tokens.
        min_length: The same counted with the prompt.
        eos_token_ids: Token ids that end the text in place of the model's own; None keeps those.
        ignore_eos: Whether an end of text, if it is chosen, does not end the answer.
        stop: Strings that end the answer.
        stop_token_ids: Token ids that end the answer as the end of text does, even if that is ignored.
        bad_words: Words that are never generated.
        include_stop_str_in_output: Whether the answer includes the stop string, or the token that ended it.
        skip_special_tokens: Whether the answer has no special tokens.
        seed: The seed; None draws one.
        num_return_sequences: How many answers each prompt gets.
        return_full_text: Put the prompt before the answer.
        best_of: How many sequences are generated for each prompt, of which the ``num_return_sequences`` most
            likely (by mean log-probability a token) are the answers; None generates only the answers.
        truncate: Keep this many tokens of the prompt's end.
        details: Report tokens, log-probabilities, counts and the seed.
        logprobs: Compute log-probabilities, for schemas that report them without ``details``.
        num_top_logprobs: Report this many of the most likely tokens beside each token; needs
            log-probabilities.
        include_usage: End a stream with the counts of tokens.
        continuous_usage: With `include_usage`, also tell the counts with every token, even without text.
        given: The fields that the client set; the others get the model's own defaults.
        names: The names of our fields in the client's schema, where they differ, for errors.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int = 0
    min_length: int = 0
    eos_token_ids: tuple[int, ...] | None = None
    ignore_eos: bool = False
    top_k: int = 50
    stop: tuple[str, ...] = field(default=(), repr=False)
    stop_token_ids: tuple[int, ...] = ()
    bad_words: tuple[str, ...] = field(default=(), repr=False)
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    seed: int | None = None
    num_return_sequences: int = 1
    best_of: int | None = None
    return_full_text: bool = False
    truncate: int | None = None
    details: bool = False
    logprobs: bool = False
    num_top_logprobs: int = 0
    include_usage: bool = False
    continuous_usage: bool = False
    given: frozenset[str] = field(default=frozenset(), repr=False, compare=False)
    names: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def num_candidates(self) -> int:
        """How many sequences to generate for each prompt."""
        return self.best_of or self.num_return_sequences

    @property
    def needs_logprobs(self) -> bool:
        """Whether log-probabilities are to be reported, or used to choose answers."""
        return self.logprobs or self.details or self.best_of is not None

    def eos_of(self, info: ModelInfo) -> tuple[int, ...]:
        """Token ids that end the text: the request's, or else the model's own."""
        return info.eos_token_ids if self.eos_token_ids is None else self.eos_token_ids

    def with_defaults(self, info: ModelInfo) -> "Parameters":
        """These parameters, with the model's defaults where the client set nothing."""
        defaults = {name: value for name, value in info.defaults.items() if name not in self.given}
        return replace(self, **defaults) if defaults else self

    def check_against(self, info: ModelInfo, where: str) -> None:
        """Check what depends on the engine or on several fields.

        Raises:
            BadRequest: A prompt has more answers than the engine's batch holds, or than greedy search has; or
                a bias or a bad word has tokens that the model does not have.
        """
        name = f"{where}.{self._called('num_return_sequences')}={self.num_return_sequences}"
        if self.num_return_sequences > info.max_batch_size:
            raise BadRequest(f"{name}: must be a whole number from 1 to {info.max_batch_size}")
        if self.num_return_sequences > 1 and not self.do_sample:
            raise BadRequest(
                f"{name}: must be 1 without do_sample and with temperature 0 (all answers would be the same)"
            )
        if self.best_of is not None and self.best_of > info.max_batch_size:
            raise BadRequest(
                f"{where}.best_of={self.best_of}: must be a whole number from 1 to {info.max_batch_size}"
            )
        named = {
            "logit_bias": [token_id for token_id, _ in self.logit_bias],
            "bad_words_ids": [token_id for word in self.bad_words_ids for token_id in word],
        }
        for field_name, token_ids in named.items():
            unknown = max(token_ids, default=0)
            if unknown >= info.vocab_size and field_name in self.given:
                raise BadRequest(
                    f"{where}.{field_name}: has token id {unknown}, and the model knows ids below"
                    f" {info.vocab_size}"
                )

    def sampling(
        self, num_prompt_tokens: int, info: ModelInfo, seed: int, where: str, bad_words: IdLists = ()
    ) -> SamplingParams:
        """How one prompt's tokens are chosen.

        Args:
            num_prompt_tokens: The prompt's length, >= 1.
            info: The engine's limits.
            seed: Used when sampling.
            where: The prompt's name in errors.
            bad_words: The token ids of the words that must not be generated.

        Raises:
            BadRequest: Prompt and new tokens do not fit, or the limits contradict each other.
        """
        max_new_tokens, min_new_tokens = self._lengths(num_prompt_tokens, info.max_context, where)
        used = (*ALWAYS_USED, *(USED_WHEN_DRAWING if self.do_sample else ()))
        asked = SamplingParams(
            max_new_tokens,
            min_new_tokens,
            **{name: getattr(self, name) for name in used},
            bad_words=bad_words,
            seed=seed if self.do_sample else 0,
        )
        return asked if asked.top_k < info.vocab_size else replace(asked, top_k=0)

    def _lengths(self, num_prompt_tokens: int, max_context: int, where: str) -> tuple[int, int]:
        min_new_tokens = max(self.min_new_tokens, self.min_length - num_prompt_tokens)
        if self.max_length is not None:
            max_new_tokens = self.max_length - num_prompt_tokens
        elif self.max_new_tokens is not None:
            max_new_tokens = self.max_new_tokens
        else:
            wanted = max(DEFAULT_MAX_NEW_TOKENS, min_new_tokens)
            max_new_tokens = max(1, min(wanted, max_context - num_prompt_tokens))
        if max_new_tokens < 1:
            raise BadRequest(
                f"max_length={self.max_length}: counts the prompt too, and {where} has {num_prompt_tokens}"
                f" tokens; must be at least {num_prompt_tokens + 1}"
            )
        if num_prompt_tokens + max_new_tokens > max_context:
            raise too_long(where, str(num_prompt_tokens), max_new_tokens, max_context, self.names)
        if min_new_tokens > max_new_tokens:
            low, high = self._called("min_new_tokens"), self._called("max_new_tokens")
            raise BadRequest(f"{low}={min_new_tokens}: must be at most {high}, which is {max_new_tokens}")
        return max_new_tokens, min_new_tokens

    def _called(self, name: str) -> str:
        return self.names.get(name, name)


def too_long(
    where: str,
    num_prompt_tokens: str,
    max_new_tokens: int,
    max_context: int,
    names: Mapping[str, str] | None = None,
) -> ContextOverflow:
    """The error for a prompt that does not fit; for ``names`` see `Parameters`."""
    # schemas with names of their own cannot truncate
    ways = "or ask for fewer new tokens"
    if not names:
        ways = "ask for fewer new tokens, or let truncate keep fewer of the prompt's tokens"
    max_name = (names or {}).get("max_new_tokens", "max_new_tokens")
    # clients of OpenAI's look for these words, from "this" to "tokens"
    return ContextOverflow(
        f"{where}: {num_prompt_tokens} prompt tokens and {max_name}={max_new_tokens} do not fit:"
        f" this model's maximum context length is {max_context} tokens; shorten the prompt, {ways}"
    )
