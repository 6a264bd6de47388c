"""A small real tokenizer and an engine that says what it is told to."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from gptj_serve.errors import ServingError
from gptj_serve.request import EndEvent, GenerationRequest, ModelInfo, Timings, TokenEvent
from gptj_serve.serving.text import Tokenizer

TEXTS = [
    "The cat sat on the mat. The dog sat on the log.",
    "Hello world! Hello there, general reader.",
    "日本語のテキスト、日本語のテキスト",
    "Grüße aus Köln, schöne Grüße",
    "😀 😃 😀 😃",
]
END_OF_TEXT = "<|endoftext|>"
VOCAB_SIZE = 420
"""Of the model: a little more than the tokenizer has, as GPT-J's."""


@functools.cache
def backend() -> tokenizers.Tokenizer:
    """Byte-level BPE as GPT-2's: id 0 is the end of text; "<|extratoken_1|>" is added, not special."""
    built = tokenizers.Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[END_OF_TEXT],
        show_progress=False,
    )
    built.train_from_iterator(TEXTS * 3, trainer)
    built.add_tokens([AddedToken("<|extratoken_1|>", normalized=False)])
    assert built.get_vocab_size() < VOCAB_SIZE
    return built


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer(backend())


def model_info(max_context: int = 200, max_batch_size: int = 4, vocab_size: int = VOCAB_SIZE) -> ModelInfo:
    return ModelInfo("fake", "/model", max_context, max_batch_size, vocab_size, (0,))


def say(text: str) -> list[int]:
    """What a model has to generate to say a text and end."""
    return [*tokenizer().encode(text), 0]


@dataclass
class FakeClient:
    """Generates scripted ids, one token a step for every sequence, as an engine does.

    Attributes:
        script: The ids of one sequence; repeated when the sequence asks for more.
        info: What `Service` is told of the model.
        fail_at: After this many events, ``error`` ends the sequence whose turn it is.
        break_at: After this many events, ``error`` is raised: the engine is gone.
    """

    script: Callable[[GenerationRequest], Sequence[int]] = lambda _: say(" cat sat.")
    info: ModelInfo = field(default_factory=model_info)
    error: ServingError | None = None
    fail_at: int | None = None
    break_at: int | None = None
    requests: list[GenerationRequest] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    sent: list[TokenEvent | EndEvent] = field(default_factory=list)
    was_closed: bool = False

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[TokenEvent | EndEvent]:
        self.requests += requests
        try:
            for event in self._events(requests):
                if len(self.sent) == self.break_at:
                    assert self.error is not None
                    raise self.error
                if len(self.sent) == self.fail_at:
                    event = EndEvent(event.request_id, "failed", self.error)
                self.sent.append(event)
                yield event
        except GeneratorExit:
            self.was_closed = True
            raise

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    def _events(self, requests: Sequence[GenerationRequest]) -> Iterator[TokenEvent | EndEvent]:
        asked = {request.request_id: request for request in requests}
        running = {request_id: self._ids(request) for request_id, request in asked.items()}
        while running:
            for request_id, ids in list(running.items()):
                if request_id in self.aborted:
                    del running[request_id]
                    yield EndEvent(request_id, "cancelled")
                elif isinstance(step := next(ids), str):
                    del running[request_id]
                    yield EndEvent(request_id, step, timings=Timings(0.25, 0.5, 1.0))
                else:
                    yield self._token(asked[request_id], step)

    @staticmethod
    def _token(request: GenerationRequest, token_id: int) -> TokenEvent:
        if not request.logprobs:
            return TokenEvent(request.request_id, token_id)
        top = tuple((other, -0.5 - other) for other in range(request.num_top_logprobs))
        return TokenEvent(request.request_id, token_id, -0.5, top)

    def _ids(self, request: GenerationRequest) -> Iterator[int | str]:
        script = itertools.cycle(self.script(request))
        for token_id in itertools.islice(script, request.sampling.max_new_tokens):
            yield token_id
            if token_id in request.eos_token_ids:
                yield "eos_token"
                return
        yield "length"
