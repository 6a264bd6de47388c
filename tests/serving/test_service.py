"""The service from body to body, with a real tokenizer and an engine that says what it is told to."""

import json
import logging
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import processors

from gptj_serve.errors import BadRequest, DeadlinePassed, InternalError, Overloaded, ServingError, Unavailable
from gptj_serve.request import GenerationRequest, TokenEvent
from gptj_serve.serving.call import Ask, Call
from gptj_serve.serving.parameters import Parameters
from gptj_serve.serving.service import Service, render_error
from gptj_serve.serving.text import Tokenizer
from support.serving_fakes import END_OF_TEXT, FakeClient, backend, model_info, say, tokenizer

MAX_PAYLOAD_BYTES = 6 << 20


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def make(client: FakeClient, **options: Any) -> Service:
    return Service(client, tokenizer(), MAX_PAYLOAD_BYTES, 30.0, **options)


def parse(document: Any, client: FakeClient | None = None, **options: Any) -> Call:
    return make(client or FakeClient(), **options).parse(json.dumps(document).encode(), "application/json")


def ask(document: Any, client: FakeClient | None = None) -> Any:
    service = make(client or FakeClient())
    call = service.parse(json.dumps(document).encode(), "application/json")
    data, content_type = service.render(call, service.run(call, "req"))
    assert content_type == "application/json"
    return json.loads(data)


def refusal(document: Any, client: FakeClient | None = None, **options: Any) -> str:
    client = client or FakeClient()
    with pytest.raises(BadRequest) as caught:
        parse(document, client, **options)
    assert client.requests == []
    return caught.value.message


def by_prompt(request: GenerationRequest) -> list[int]:
    """Answers "The ..." with " cat", "Hello ..." with " there", in the sequence's own number of words."""
    word = " cat" if request.prompt_ids == tokenizer().encode("The") else " there"
    return say(word * (request.sampling.sequence_index + 1))


def test_one_prompt() -> None:
    client = FakeClient()
    assert ask({"inputs": "The"}, client) == [{"generated_text": " cat sat."}]
    (request,) = client.requests
    assert request.prompt_ids == tokenizer().encode("The")
    assert request.eos_token_ids == (0,)
    assert request.sampling.max_new_tokens == 100
    assert not request.logprobs
    assert not request.sampling.do_sample


def test_the_prompt_comes_back_only_if_asked_for() -> None:
    answer = ask({"inputs": "The", "parameters": {"return_full_text": True}})
    assert answer == [{"generated_text": "The cat sat."}]


def test_lists_answer_in_order() -> None:
    answer = ask({"inputs": ["The", "Hello"]}, FakeClient(by_prompt))
    assert answer == [{"generated_text": " cat"}, {"generated_text": " there"}]
    assert ask({"inputs": ["The"]}, FakeClient(by_prompt)) == [{"generated_text": " cat"}]


def test_several_answers_a_prompt() -> None:
    parameters = {"do_sample": True, "num_return_sequences": 2, "seed": 7}
    client = FakeClient(by_prompt)
    answer = ask({"inputs": "The", "parameters": parameters}, client)
    assert answer == [{"generated_text": " cat"}, {"generated_text": " cat cat"}]
    assert [(one.sampling.seed, one.sampling.sequence_index) for one in client.requests] == [(7, 0), (7, 1)]
    answer = ask({"inputs": ["Hello", "The"], "parameters": parameters}, FakeClient(by_prompt))
    assert [[entry["generated_text"] for entry in group] for group in answer] == [
        [" there", " there there"],
        [" cat", " cat cat"],
    ]


def test_the_guides_answers_have_the_prompt() -> None:
    answer = ask({"inputs": {"text_inputs": "The", "parameters": {"min_tokens": 2, "top_p": 10}}})
    assert answer == {"response": [{"generated_text": "The cat sat."}], "status": 200}
    answer = ask({"inputs": {"text_inputs": ["The", "Hello"]}}, FakeClient(by_prompt))
    assert answer["response"] == [[{"generated_text": "The cat"}], [{"generated_text": "Hello there"}]]
    parameters = {"do_sample": True, "num_return_sequences": 2}
    answer = ask({"inputs": {"text_inputs": "The", "parameters": parameters}}, FakeClient(by_prompt))
    assert answer["response"] == [{"generated_text": "The cat"}, {"generated_text": "The cat cat"}]


@pytest.mark.parametrize(
    ("accept", "content_type", "answer"),
    [
        (None, "text/plain; charset=utf-8", " Grüße".encode()),
        ("text/plain", "text/plain; charset=utf-8", " Grüße".encode()),
        ("application/json", "application/json", '[{"generated_text":" Grüße"}]'.encode()),
        ("image/png", "application/json", '[{"generated_text":" Grüße"}]'.encode()),
    ],
)
def test_plain_text(accept: str | None, content_type: str, answer: bytes) -> None:
    client = FakeClient(lambda _: say(" Grüße"))
    service = make(client)
    call = service.parse("schöne".encode(), "text/plain", accept)
    assert service.render(call, service.run(call, "req")) == (answer, content_type)
    assert client.requests[0].prompt_ids == tokenizer().encode("schöne")


def test_details() -> None:
    client = FakeClient(lambda _: say(" cat"))
    (entry,) = ask({"inputs": "The dog", "parameters": {"details": True}}, client)
    cat, eos = client.sent[0], client.sent[1]
    assert entry["details"] == {
        "finish_reason": "eos_token",
        "prompt_tokens": len(tokenizer().encode("The dog")),
        "generated_tokens": 2,
        "seed": None,
        "prefill": [],
        "tokens": [
            {"id": cat.token_id, "text": " cat", "logprob": -0.5, "special": False},
            {"id": eos.token_id, "text": END_OF_TEXT, "logprob": -0.5, "special": True},
        ],
    }
    assert client.requests[0].logprobs


def test_the_seed_is_reported_and_drawn_anew_for_each_prompt() -> None:
    sampled = {"details": True, "do_sample": True}
    assert ask({"inputs": "a", "parameters": {**sampled, "seed": 5}})[0]["details"]["seed"] == 5
    document = {"inputs": ["a", "a"], "parameters": sampled}
    drawn = set()
    for client in (FakeClient(), FakeClient()):
        seeds = [entry["details"]["seed"] for entry in ask(document, client)]
        assert [request.sampling.seed for request in client.requests] == seeds
        assert not any(request.reproducible for request in client.requests)
        drawn |= set(seeds)
    assert len(drawn) == 4
    assert all(0 <= seed < 2**53 for seed in drawn)


def test_a_chosen_seed_is_that_of_every_prompt_and_asks_for_a_batch_apart() -> None:
    client = FakeClient()
    ask({"inputs": ["a", "b"], "parameters": {"do_sample": True, "seed": 5}}, client)
    assert [(request.sampling.seed, request.reproducible) for request in client.requests] == [(5, True)] * 2


def test_sampling_parameters_reach_the_engine_as_sent() -> None:
    given = {
        "max_new_tokens": 9,
        "min_new_tokens": 3,
        "do_sample": True,
        "temperature": 0.5,
        "top_k": 4,
        "top_p": 0.75,
        "typical_p": 0.5,
        "repetition_penalty": 1.5,
        "seed": 2**64 - 1,
    }
    (prompt,) = parse({"inputs": "a", "parameters": given}).prompts
    assert {name: getattr(prompt.sampling, name) for name in given} == given


def test_top_k_is_transformers_default_only_when_sampling() -> None:
    assert parse({"inputs": "a", "parameters": {"do_sample": True}}).prompts[0].sampling.top_k == 50
    greedy = (
        parse({"inputs": {"text_inputs": "a", "parameters": {"temperature": 2, "top_k": 5, "top_p": 0.5}}})
        .prompts[0]
        .sampling
    )
    assert (greedy.do_sample, greedy.temperature, greedy.top_k, greedy.top_p) == (False, 1.0, 0, 1.0)
    huge = parse({"inputs": "a", "parameters": {"do_sample": True, "top_k": 99999}})
    assert huge.prompts[0].sampling.top_k == 0


def test_the_best_of_several_is_the_answer_and_details_tell_the_others() -> None:
    class Rated(FakeClient):
        """The second sequence is the likeliest a token, the first the least likely."""

        @staticmethod
        def _token(request: GenerationRequest, token_id: int) -> TokenEvent:
            logprob = (-0.9, -0.1, -0.5)[request.sampling.sequence_index]
            return TokenEvent(request.request_id, token_id, logprob)

    client = Rated(by_prompt)
    parameters = {"best_of": 3, "temperature": 0.7, "details": True}
    (entry,) = ask({"inputs": "The", "parameters": parameters}, client)
    assert len(client.requests) == 3
    assert entry["generated_text"] == " cat cat"
    others = entry["details"].pop("best_of_sequences")
    assert [other["generated_text"] for other in others] == [" cat cat cat", " cat"]
    assert [other["tokens"][0]["logprob"] for other in others] == [-0.5, -0.9]
    assert {*others[0]} == {*entry["details"], "generated_text"} - {"prompt_tokens"}
    (entry,) = ask({"inputs": "The", "parameters": {**parameters, "details": False}}, Rated(by_prompt))
    assert entry == {"generated_text": " cat cat"}
    pair = {**parameters, "num_return_sequences": 2}
    first, second = ask({"inputs": "The", "parameters": pair}, Rated(by_prompt))
    assert (first["generated_text"], second["generated_text"]) == (" cat cat", " cat cat cat")
    assert [len(one["details"].get("best_of_sequences", ())) for one in (first, second)] == [1, 0]


def test_the_requests_own_end_of_text() -> None:
    client = FakeClient(lambda _: say(" cat sat."))
    cat, sat = tokenizer().encode(" cat")[0], tokenizer().encode(" sat")[0]
    (entry,) = ask({"inputs": "The", "parameters": {"eos_token_id": [sat], "details": True}}, client)
    assert client.requests[0].eos_token_ids == (sat,)
    assert (entry["generated_text"], entry["details"]["finish_reason"]) == (" cat", "eos_token")
    assert [(one["id"], one["special"]) for one in entry["details"]["tokens"]] == [(cat, False), (sat, True)]


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_token_ids_end_the_text_like_its_end(ignore_eos: bool) -> None:
    client = FakeClient(lambda _: say(" cat sat."))
    (sat,) = tokenizer().encode(" sat")
    eos = model_info().eos_token_ids
    document = {"prompt": "The", "temperature": 0, "stop_token_ids": [sat], "ignore_eos": ignore_eos}
    (choice,) = ask(document, client)["choices"]
    assert client.requests[0].eos_token_ids == ((sat,) if ignore_eos else (*eos, sat))
    assert (choice["text"], choice["finish_reason"]) == (" cat", "stop")


def test_bad_words_are_tokens_with_and_without_a_space_before_them() -> None:
    def words(*given: str) -> tuple[tuple[int, ...], ...]:
        parameters = {"bad_words": list(given), "bad_words_ids": [[7]]}
        (prompt,) = parse({"inputs": "a", "parameters": parameters}).prompts
        assert prompt.sampling.bad_words_ids == ((7,),)
        return prompt.sampling.bad_words

    encode = tokenizer().encode
    assert words("cat") == words(" cat") == (encode("cat"), encode(" cat"))
    assert words("cat", "the mat", "cat") == (
        encode("cat"),
        encode(" cat"),
        encode("the mat"),
        encode(" the mat"),
    )
    assert words("\n") == (encode("\n"), encode(" \n"))
    assert words() == ()


def test_the_models_defaults_hold_unless_the_request_says_otherwise() -> None:
    defaults = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "suppress_tokens": (1, 2)}
    client = FakeClient(info=replace(model_info(), defaults=defaults))

    def sampling(document: Any) -> Any:
        (prompt,) = parse(document, client).prompts
        return [getattr(prompt.sampling, name) for name in defaults]

    assert sampling({"inputs": "a"}) == sampling({"prompt": "a"}) == [1.3, 3, (1, 2)]
    assert sampling({"inputs": "a", "parameters": {"repetition_penalty": 1.0}}) == [1.0, 3, (1, 2)]
    off = {"repetition_penalty": 1, "no_repeat_ngram_size": 0}
    assert sampling({"prompt": "a", **off}) == [1.0, 0, (1, 2)]
    assert sampling({"inputs": {"text_inputs": "a", "parameters": {**off, "suppress_tokens": []}}}) == [
        1.0,
        0,
        (),
    ]
    # those that the request did not set are none of the client's errors
    beyond = FakeClient(info=replace(model_info(), defaults={"bad_words_ids": ((99999,),)}))
    assert parse({"inputs": "a"}, beyond).prompts


def test_a_stop_string_ends_and_aborts_its_sequence_alone() -> None:
    def script(request: GenerationRequest) -> list[int]:
        return say(" sat on the log." if request.prompt_ids == tokenizer().encode("The") else " cat" * 12)

    client = FakeClient(script)
    parameters = {"stop": ["on t"], "details": True, "max_new_tokens": 10}
    stopped, other = ask({"inputs": ["The", "Hello"], "parameters": parameters}, client)
    assert stopped["generated_text"] == " sat "
    assert stopped["details"]["finish_reason"] == "stop_sequence"
    texts = [token["text"] for token in stopped["details"]["tokens"]]
    assert "on t" in "".join(texts)
    assert "on t" not in "".join(texts[:-1])
    assert stopped["details"]["generated_tokens"] == len(texts)
    assert client.aborted == [client.requests[0].request_id]
    assert (other["generated_text"], other["details"]["finish_reason"]) == (" cat" * 10, "length")


def test_the_answer_does_not_wait_for_an_aborted_end() -> None:
    client = FakeClient(lambda _: say(" cat" * 50))
    assert ask({"inputs": "The", "parameters": {"stop": [" cat cat"]}}, client) == [{"generated_text": ""}]
    assert len(client.sent) == 2
    assert client.was_closed


@pytest.mark.parametrize("schema", ["tgi", "guide", "openai"])
def test_every_schema_takes_what_is_shown_of_stops_and_special_tokens(schema: str) -> None:
    def text(**fields: Any) -> str:
        client = FakeClient(lambda _: say(" cat mat"))
        if schema == "openai":
            return str(ask({"prompt": "The", "temperature": 0, **fields}, client)["choices"][0]["text"])
        parameters = {"return_full_text": False, **fields}
        if schema == "guide":
            guide = ask({"inputs": {"text_inputs": "The", "parameters": parameters}}, client)
            return str(guide["response"][0]["generated_text"])
        return str(ask({"inputs": "The", "parameters": parameters}, client)[0]["generated_text"])

    assert text(stop=[" mat"]) == " cat"
    assert text(stop=[" mat"], include_stop_str_in_output=True) == " cat mat"
    assert text(skip_special_tokens=False) == " cat mat"
    assert text(skip_special_tokens=False, include_stop_str_in_output=True) == f" cat mat{END_OF_TEXT}"


def with_first_token(eos_token_id: int | None = None) -> Service:
    """A service whose tokenizer begins prompts with the end of text, and names a token as that itself."""
    copy = Backend.from_str(backend().to_str())
    copy.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, 0)]
    )
    return Service(FakeClient(), Tokenizer(copy, eos_token_id), MAX_PAYLOAD_BYTES, 30.0)


def test_what_the_tokenizer_adds_is_added_to_texts_alone() -> None:
    hello = tokenizer().encode("Hello cat")
    service = with_first_token()

    def ids(document: Any) -> tuple[int, ...]:
        return service.parse(json.dumps(document).encode(), None).prompts[0].token_ids

    assert ids({"inputs": "Hello cat"}) == ids({"prompt": "Hello cat"}) == (0, *hello)
    assert ids({"prompt": list(hello)}) == hello
    assert ids({"inputs": "Hello cat", "parameters": {"truncate": len(hello)}}) == hello
    assert ids({"inputs": "Hello cat", "parameters": {"truncate": len(hello) + 1}}) == (0, *hello)
    chat = Ask("chat", ("Hello cat",), False, "messages", "body", Parameters(), adds_special_tokens=False)
    assert service.check(chat, time.monotonic()).prompts[0].token_ids == hello


@pytest.mark.parametrize(("own", "ends"), [(None, (0,)), (0, (0,)), (5, (0, 5)), (10_000, (0,))])
def test_the_tokenizers_own_end_of_text_ends_a_text_too(own: int | None, ends: tuple[int, ...]) -> None:
    call = with_first_token(own).parse(b'{"inputs": "Hello"}', None)
    assert [request.eos_token_ids for request in call.requests("r", 1.0)] == [ends]


def test_a_stop_string_in_the_prompt_does_not_count() -> None:
    document = {"inputs": "The cat", "parameters": {"stop": "The cat", "return_full_text": True}}
    assert ask(document, FakeClient(lambda _: say(" sat."))) == [{"generated_text": "The cat sat."}]


def test_ids_beyond_the_tokenizer_are_no_text() -> None:
    client = FakeClient(lambda _: [backend().get_vocab_size(), *say(" cat")])
    assert ask({"inputs": "The"}, client) == [{"generated_text": " cat"}]


def test_a_half_character_at_the_end_is_dropped() -> None:
    ids = {tokenizer().token_bytes(token_id): token_id for token_id in range(1, backend().get_vocab_size())}
    client = FakeClient(lambda _: [ids[b"a"], ids[b"\xf0"], ids[b"\x9f"]])
    (entry,) = ask({"inputs": "x", "parameters": {"max_new_tokens": 3, "details": True}}, client)
    assert entry["generated_text"] == "a"
    assert [token["text"] for token in entry["details"]["tokens"]] == ["a", "\ufffd", "\ufffd"]


def test_truncate_keeps_the_end() -> None:
    text = "The cat sat on the mat." * 50 + " Hello general reader"
    client = FakeClient()
    document = {"inputs": text, "parameters": {"truncate": 7, "return_full_text": True}}
    (entry,) = ask(document, client)
    assert client.requests[0].prompt_ids == tokenizer().encode(text)[-7:]
    assert entry["generated_text"] == text + " cat sat."


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ({"inputs": ""}, "inputs: is empty"),
        ({"inputs": ["a", ""]}, "inputs[1]: is empty"),
        ({"inputs": {"text_inputs": ["a", "b", ""]}}, "inputs.text_inputs[2]: is empty"),
        ({"inputs": ["a", "b\ud800"]}, "inputs[1]: has a lone surrogate at character 1"),
        ({"inputs": ["a"] * 1025}, "at most 1024"),
        (
            {"inputs": ["a"] * 300, "parameters": {"do_sample": True, "num_return_sequences": 4}},
            "1200 sequences",
        ),
        ({"inputs": "a", "parameters": {"num_return_sequences": 2}}, "num_return_sequences=2"),
        (
            {"inputs": "a", "parameters": {"num_return_sequences": 5, "do_sample": True}},
            "parameters.num_return_sequences=5: must be a whole number from 1 to 4",
        ),
        (
            {"inputs": "a", "stream": True},
            "stream=true: must be false here; GPTJ_FRONT=http is the setting that streams",
        ),
        ({"inputs": "a", "parameters": {"min_new_tokens": 6, "max_new_tokens": 5}}, "min_new_tokens=6"),
    ],
)
def test_what_cannot_run_never_reaches_the_engine(document: Any, named: str) -> None:
    assert named in refusal(document)


def test_a_request_may_have_as_many_sequences_as_the_limit_says() -> None:
    assert parse({"inputs": ["a"] * 1024}).num_sequences == 1024
    assert parse({"inputs": ["a"] * 6}, max_queue=2).num_sequences == 6
    assert "at most 6" in refusal({"inputs": ["a"] * 7}, max_queue=2)
    assert "at most 1024" in refusal({"inputs": ["a"] * 1025}, max_queue=100_000)


def test_the_context_is_a_limit_told_with_its_numbers() -> None:
    prompt = "Hello" * 150
    (num_tokens,) = {len(tokenizer().encode(prompt))}
    assert num_tokens == 150
    room = {"inputs": prompt, "parameters": {"max_new_tokens": 50}}
    assert parse(room).prompts[0].sampling.max_new_tokens == 50
    message = refusal({"inputs": ["a", prompt], "parameters": {"max_new_tokens": 51}})
    for part in (
        "inputs[1]",
        "150 prompt tokens",
        "max_new_tokens=51",
        "context length is 200 tokens",
    ):
        assert part in message
    truncated = {"inputs": prompt, "parameters": {"max_new_tokens": 51, "truncate": 149}}
    assert len(parse(truncated).prompts[0].token_ids) == 149


def test_the_default_takes_what_fits() -> None:
    def max_new_tokens(prompt: str, **parameters: Any) -> int:
        return parse({"inputs": prompt, "parameters": parameters}).prompts[0].sampling.max_new_tokens

    assert max_new_tokens("Hello" * 50) == 100
    assert max_new_tokens("Hello" * 150) == 50
    assert max_new_tokens("Hello" * 199) == 1
    assert max_new_tokens("Hello", min_new_tokens=120) == 120
    assert "max_new_tokens=1 " in refusal({"inputs": "Hello" * 200})
    assert "min_new_tokens=60" in refusal({"inputs": "Hello" * 150, "parameters": {"min_new_tokens": 60}})


def test_the_guides_lengths_count_the_prompt() -> None:
    def sampling(**parameters: Any) -> tuple[int, int]:
        call = parse({"inputs": {"text_inputs": "Hello" * 10, "parameters": parameters}})
        return call.prompts[0].sampling.max_new_tokens, call.prompts[0].sampling.min_new_tokens

    assert sampling(max_length=50) == (40, 0)
    assert sampling(max_length=50, min_length=30) == (40, 20)
    assert sampling(max_length=50, max_new_tokens=5) == (40, 0)
    assert sampling(min_length=5, max_new_tokens=5) == (5, 0)
    document = {"inputs": {"text_inputs": "Hello" * 10, "parameters": {"max_length": 10}}}
    assert "max_length=10" in refusal(document)
    assert "at least 11" in refusal(document)


def test_a_prompt_of_megabytes_is_refused_quickly() -> None:
    start_s = time.process_time()
    message = refusal({"inputs": "a" * 5_000_000, "parameters": {"max_new_tokens": 20}})
    assert time.process_time() - start_s < 1
    assert "at least" in message
    assert "max_new_tokens=20" in message
    assert "200" in message


def test_ids_beyond_the_model_are_refused() -> None:
    extra = backend().token_to_id("<|extratoken_1|>")
    client = FakeClient(info=model_info(vocab_size=extra))
    assert f"inputs: has token id {extra}" in refusal({"inputs": "a<|extratoken_1|>"}, client)
    assert parse({"inputs": "a<|extratoken_1|>"}).prompts[0].token_ids[-1] == extra


def test_special_tokens_in_a_prompt_are_tokens_and_none_are_added() -> None:
    (prompt,) = parse({"inputs": f"Hello{END_OF_TEXT}\0"}).prompts
    assert prompt.token_ids == (*backend().encode("Hello").ids, 0, *backend().encode("\0").ids)


def test_streaming_is_for_fronts_that_can() -> None:
    assert parse({"inputs": "a", "stream": True}, streaming=True).ask.stream


def test_one_failure_fails_the_call_and_cancels_the_rest() -> None:
    client = FakeClient(error=InternalError("the batch was given up"), fail_at=3)
    with pytest.raises(InternalError, match="given up"):
        ask({"inputs": ["The", "Hello", "a"]}, client)
    assert client.was_closed


@pytest.mark.parametrize("error", [Unavailable("the engine is gone"), Overloaded("full", retry_after_s=2)])
@pytest.mark.parametrize("break_at", [0, 2])
def test_the_engines_refusals_pass_through(error: ServingError, break_at: int) -> None:
    with pytest.raises(type(error), match=error.message):
        ask({"inputs": ["The", "Hello"]}, FakeClient(error=error, break_at=break_at))


def test_an_engine_that_stops_early_is_an_error() -> None:
    class Quitter(FakeClient):
        def generate(self, requests: Any) -> Any:
            return iter(list(super().generate(requests))[:2])

    with pytest.raises(InternalError):
        ask({"inputs": "The"}, Quitter())


def test_the_engine_gets_the_time_that_is_left() -> None:
    clock, client = Clock(), FakeClient()
    service = make(client, clock=clock)
    call = service.parse(b'{"inputs": "The"}', None)
    clock.now_s += 10
    service.run(call, "req")
    assert client.requests[0].timeout_s == pytest.approx(20.0)
    clock.now_s += 20
    with pytest.raises(DeadlinePassed, match="30 s"):
        service.run(call, "req")
    assert len(client.requests) == 1


def test_request_ids_differ_within_a_call() -> None:
    client = FakeClient()
    ask({"inputs": ["a", "b"], "parameters": {"do_sample": True, "num_return_sequences": 3}}, client)
    ids = [request.request_id for request in client.requests]
    assert len(set(ids)) == 6
    assert all(request_id.startswith("req") for request_id in ids)


def logged(caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    (record,) = [record for record in caplog.records if record.message == "request"]
    return record.fields  # type: ignore[attr-defined, no-any-return]


def test_one_log_record_a_request(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock()
    service = make(FakeClient(by_prompt), clock=clock)
    call = service.parse(b'{"inputs": ["The", "Hello"], "parameters": {"max_new_tokens": 5}}', None)
    clock.now_s += 0.5
    result = service.run(call, "req")
    clock.now_s += 1
    service.render(call, result)
    assert logged(caplog) == {
        "event": "request",
        "request_id": "req",
        "status": 200,
        "schema": "tgi",
        "prompt_tokens": 2,
        "num_sequences": 2,
        "generated_tokens": sum(answer.num_tokens for answer in result.answers),
        "queue_s": 0.25,
        "first_token_s": 0.5,
        "total_s": 1.5,
        "finish_reasons": ["eos_token", "eos_token"],
    }


def test_prompts_answers_and_stop_strings_are_never_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    service = make(FakeClient(lambda _: say(" general reader")))
    secrets = "Hello there", "general", "xyzzy"
    call = service.parse(b'{"inputs": "Hello there", "parameters": {"stop": "xyzzy", "details": true}}', None)
    result = service.run(call, "req")
    service.render(call, result)
    service.render_error(ValueError("while reading 'Hello there'"), "req", call)
    assert len(caplog.records) == 3
    everything = "".join(str(vars(record)) for record in caplog.records) + caplog.text + repr((call, result))
    assert not [secret for secret in secrets if secret in everything]


def test_errors_are_json_with_their_status(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    status, data, content_type, headers = render_error(BadRequest("inputs: is empty"), "req")
    assert (status, content_type, headers) == (400, "application/json", {})
    assert json.loads(data) == {"error": "inputs: is empty", "error_type": "validation", "request_id": "req"}
    assert logged(caplog) == {
        "event": "request",
        "request_id": "req",
        "status": 400,
        "error_type": "validation",
    }


def test_a_failed_call_is_logged_with_what_is_known_of_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock()
    service = make(FakeClient(), clock=clock)
    call = service.parse(b'{"inputs": {"text_inputs": "The"}}', None)
    clock.now_s += 3
    service.render_error(Unavailable("the engine is gone"), "req", call)
    fields = logged(caplog)
    assert (fields["status"], fields["schema"], fields["prompt_tokens"], fields["total_s"]) == (
        503,
        "guide",
        1,
        3,
    )


def test_overload_says_when_to_come_back() -> None:
    assert render_error(Overloaded("full", retry_after_s=7), "req").headers == {"Retry-After": "7"}
    assert render_error(Overloaded("full"), "req").headers == {"Retry-After": "1"}


def test_unexpected_errors_tell_the_client_nothing(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise KeyError("secret")
    except KeyError as error:
        answer = render_error(error, "req")
    assert answer.status == 500
    assert b"secret" not in answer.body
    assert b"KeyError" not in answer.body
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.fields["exception"] == "KeyError"  # type: ignore[attr-defined]
    assert "test_service.py" in record.fields["traceback"]  # type: ignore[attr-defined]


def test_errors_can_quote_anything() -> None:
    service = make(FakeClient())
    with pytest.raises(BadRequest) as caught:
        service.parse(b'{"inputs": "a", "parameters": {"\\ud800\\u0000": "\\udfff"}}', None)
    assert json.loads(service.render_error(caught.value, "req").body)["error"].startswith("parameters.")


def test_serving_imports_nothing_heavy() -> None:
    program = (
        "import sys; import gptj_serve.serving.service, gptj_serve.serving.schemas;"
        "heavy = {'torch', 'transformers', 'boto3', 'numpy', 'deepspeed'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
