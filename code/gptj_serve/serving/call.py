"""What one HTTP request asks for, before and after its prompts are tokenised."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gptj_serve.request import GenerationRequest, SamplingParams
from gptj_serve.serving.generation import Answer
from gptj_serve.serving.parameters import Parameters


@dataclass(frozen=True, slots=True)
class Ask:
    """What a body says, whatever schema it was written in.

    Attributes:
        schema: Name of the schema, which the answer follows.
        texts: The prompts, each as text or as token ids.
        is_list: Whether the prompts came as a list, however short.
        prompts_field: Where in the body the prompts were, for errors.
        parameters_field: Where in the body the parameters were, for errors.
        parameters: How to generate.
        stream: Whether the client wants tokens as they come.
        is_bare: Whether the answer is the only entry itself, where the schema has lists of entries.
        messages: A conversation, of which the model's chat template makes the prompt; ``texts`` is empty
            until then. It is None except in chat.
        adds_special_tokens: Whether texts get what the tokenizer adds; chat templates write that themselves.
    """

    schema: str
    texts: tuple[str | tuple[int, ...], ...] = field(repr=False)
    is_list: bool
    prompts_field: str
    parameters_field: str
    parameters: Parameters
    stream: bool = False
    is_bare: bool = False
    messages: Sequence[Mapping[str, Any]] | None = field(default=None, repr=False)
    adds_special_tokens: bool = True

    def with_prompt(self, prompt: str) -> "Ask":
        """The same with the prompt that was made from its messages."""
        return replace(self, texts=(prompt,))

    def prompt_name(self, index: int) -> str:
        """The name of a prompt in errors."""
        return f"{self.prompts_field}[{index}]" if self.is_list else self.prompts_field


@dataclass(frozen=True, slots=True)
class Prompt:
    """A tokenised prompt. Neither text nor ids are part of its `repr`, so no log can show them.

    Attributes:
        text: The text as the client sent it, or the text of the token ids that it sent.
        token_ids: What the model reads (less than the text, if the client asked to truncate).
        sampling: How its tokens are chosen; ``sequence_index`` 0.
    """

    text: str = field(repr=False)
    token_ids: tuple[int, ...] = field(repr=False)
    sampling: SamplingParams

    @property
    def seed(self) -> int | None:
        """The seed that is used, whether given or drawn; None for greedy search."""
        return self.sampling.seed if self.sampling.do_sample else None


@dataclass(frozen=True, slots=True)
class Call:
    """A request that was read and checked.

    Attributes:
        ask: What the body said.
        prompts: The prompts in the client's order.
        eos_token_ids: Token ids that end the text, unless that is ignored.
        accept: The request's ``Accept`` header.
        arrived_s: When the request came, on the service's clock.
        model: The model's name in OpenAI's answers.
    """

    ask: Ask = field(repr=False)
    prompts: tuple[Prompt, ...]
    eos_token_ids: tuple[int, ...]
    accept: str | None
    arrived_s: float
    model: str

    @property
    def parameters(self) -> Parameters:
        """How to generate."""
        return self.ask.parameters

    @property
    def ending_ids(self) -> tuple[int, ...]:
        """Token ids that end a sequence."""
        eos = () if self.parameters.ignore_eos else self.eos_token_ids
        return (*eos, *self.parameters.stop_token_ids)

    @property
    def num_sequences(self) -> int:
        """How many sequences to generate: prompts times candidates for each prompt."""
        return len(self.prompts) * self.parameters.num_candidates

    @property
    def num_prompt_tokens(self) -> int:
        """How many tokens all prompts have together."""
        return sum(len(prompt.token_ids) for prompt in self.prompts)

    def choose(self, candidates: Sequence[Answer]) -> tuple[Answer, ...]:
        """Choose the answers: each prompt's most likely candidates, by mean log-probability a token."""
        wanted, each = self.parameters.num_return_sequences, self.parameters.num_candidates
        if wanted == each:
            return tuple(candidates)
        chosen: list[Answer] = []
        for first in range(0, len(candidates), each):
            ranked = sorted(candidates[first : first + each], key=_mean_logprob, reverse=True)
            chosen += [replace(ranked[0], others=tuple(ranked[wanted:])), *ranked[1:wanted]]
        return tuple(chosen)

    def requests(self, request_id: str, timeout_s: float) -> Iterator[GenerationRequest]:
        """The engine's requests, all answers of the first prompt first.

        Args:
            request_id: Unique among the calls that run on one engine connection.
            timeout_s: How many seconds are left.
        """
        for prompt_index, prompt in enumerate(self.prompts):
            for sequence_index in range(self.parameters.num_candidates):
                yield GenerationRequest(
                    request_id=f"{request_id}/{prompt_index}.{sequence_index}",
                    prompt_ids=prompt.token_ids,
                    sampling=replace(prompt.sampling, sequence_index=sequence_index),
                    eos_token_ids=self.ending_ids,
                    logprobs=self.parameters.needs_logprobs,
                    num_top_logprobs=self.parameters.num_top_logprobs,
                    timeout_s=timeout_s,
                    reproducible=self.parameters.do_sample and self.parameters.seed is not None,
                )


def _mean_logprob(answer: Answer) -> float:
    return answer.mean_logprob if answer.mean_logprob is not None else float("-inf")
