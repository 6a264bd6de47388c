"""The HTTP front from outside: streams, OpenAI's schema, cancellation, overload, limits."""

import contextlib
import http.client
import json
import shutil
import signal
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest

from gptj_serve import demo
from gptj_serve.serving.http.parsing import MAX_WAITING
from gptj_serve.serving.parsing import NUM_PLACES
from support.server import (
    WAIT_TIMEOUT_S,
    WITHOUT_MODEL,
    WITHOUT_MODEL_DIR,
    Server,
    free_port,
    least,
    python_path,
    serving,
    until,
)

PROMPTS = ["In the beginning", "And he said unto them,"]
FRONT = "gptj_serve.serving.http"
GENERATION_CONFIG = {
    "no_repeat_ngram_size": 2,
    "repetition_penalty": 1.3,
    "temperature": 0.7,
    "num_beams": 4,
    "eos_token_id": [0, 50256],
}
LAST_CHUNK = b"0\r\n\r\n"
LONG = {"max_new_tokens": 1500, "min_new_tokens": 1500}
SHORT = {"max_new_tokens": 120, "min_new_tokens": 120}
BEFORE = {"max_new_tokens": 300, "min_new_tokens": 300}


@pytest.fixture
def front(shared: Callable[[str], Server]) -> Server:
    """A server without a model, on which tokens cost no processor time."""
    return shared("http-continuous")


@pytest.fixture
def with_model(shared: Callable[[str], Server]) -> Server:
    """A server that says what the demo model says."""
    return shared("http-fused")


@pytest.fixture(params=["static", "continuous"])
def either(request: pytest.FixtureRequest, shared: Callable[[str], Server]) -> Server:
    """A server of each kind of batching, without a model."""
    return shared(f"http-{request.param}")


@contextlib.contextmanager
def opened(server: Server, path: str, document: Any, **headers: str) -> Iterator[http.client.HTTPResponse]:
    """An answer whose body has not been read."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_TIMEOUT_S)
    with contextlib.closing(connection):
        content = {"Content-Type": "application/json", **headers}
        connection.request("POST", path, json.dumps(document), content)
        yield connection.getresponse()


def events(server: Server, path: str, document: Any, **headers: str) -> list[Any]:
    """All events of a stream."""
    with opened(server, path, document, **headers) as answer:
        return read_events(answer)


def read_events(answer: http.client.HTTPResponse) -> list[Any]:
    """All events of a stream that has begun."""
    assert answer.status == 200, answer.read()
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = answer.read().decode().split("\n\n")
    assert lines.pop() == ""
    assert all(line.startswith("data: ") for line in lines)
    return [json.loads(line[6:]) if line != "data: [DONE]" else line[6:] for line in lines]


@contextlib.contextmanager
def never_reading(server: Server, path: str, document: Any) -> Iterator[socket.socket]:
    """A client that asks and then takes nothing."""
    body = json.dumps(document)
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(WAIT_TIMEOUT_S)
        sock.connect(("127.0.0.1", server.port))
        sock.sendall((head + body).encode())
        yield sock


def metric(server: Server, name: str) -> float:
    """The sum of a metric's samples."""
    lines = server.get("/metrics").body.decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split(" ")[0] == name)


def pass_on(server: Server) -> None:
    """Wait until the front has passed on all that it was sent before: its one loop went round meanwhile."""
    for _ in range(3):
        server.get("/metrics")


def read_on(sock: socket.socket, end: bytes) -> bytes:
    """What comes, up to an end."""
    data = b""
    while not data.endswith(end):
        data += (part := sock.recv(4000))
        assert part, data
    return data


def read_what_is_there(sock: socket.socket) -> bytes:
    """What has been sent: between the two ends there is only the kernel, which needs no half second."""
    data = b""
    sock.settimeout(0.5)
    with contextlib.suppress(TimeoutError):
        while part := sock.recv(4000):
            data += part
    sock.settimeout(WAIT_TIMEOUT_S)
    return data


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("parameters", [{}, {"stop": ["the"]}, {"return_full_text": True}])
def test_a_joined_stream_is_the_whole_answer(with_model: Server, prompt: str, parameters: Any) -> None:
    parameters = {"max_new_tokens": 24, "details": True, **parameters}
    whole = with_model.generate(prompt, **parameters)
    parts = events(with_model, "/invocations", {"inputs": prompt, "parameters": parameters, "stream": True})
    start = prompt if parameters.get("return_full_text") else ""
    assert start + "".join(part["token"]["text"] for part in parts) == whole.text
    assert parts[-1]["generated_text"] == whole.text
    details = whole.json[0]["details"]
    assert parts[-1]["details"]["finish_reason"] == details["finish_reason"]
    assert parts[-1]["details"]["generated_tokens"] == details["generated_tokens"] == len(parts)
    assert [part["token"]["id"] for part in parts] == [token["id"] for token in details["tokens"]]
    assert all(part["generated_text"] is None for part in parts[:-1])


def test_tokens_come_as_they_are_made(front: Server) -> None:
    before = front.settle()
    with opened(front, "/invocations", {"inputs": "And", "parameters": LONG, "stream": True}) as answer:
        assert answer.read(10)
        now = front.figures()
        assert (now.num_running, now.num_finished) == (1, before.num_finished)


def test_openai_streams_and_whole_answers_agree(with_model: Server) -> None:
    document = {"prompt": "In the beginning", "max_tokens": 16, "temperature": 0}
    with opened(with_model, "/v1/completions", document) as answer:
        whole = json.loads(answer.read())
    assert whole["object"] == "text_completion"
    assert whole["usage"]["completion_tokens"] == 16
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *parts, last, done = events(with_model, "/v1/completions", document | options)
    assert "".join(part["choices"][0]["text"] for part in parts) == whole["choices"][0]["text"]
    assert last["usage"] == whole["usage"]
    assert done == "[DONE]"
    # and by its shape on /invocations
    with opened(with_model, "/invocations", document) as answer:
        assert json.loads(answer.read())["choices"] == whole["choices"]


@pytest.mark.parametrize("ignored", [False, True], ids=["heeded", "ignored"])
def test_the_end_of_text_may_be_ignored(with_model: Server, ignored: bool) -> None:
    """A bias makes every token the end of text: it ends the answer at once or nothing, and is no text."""
    document = {"prompt": "The king", "max_tokens": 9, "temperature": 0, "logit_bias": {"0": 100}}
    with opened(with_model, "/v1/completions", document | {"ignore_eos": ignored}) as answer:
        whole = json.loads(answer.read())
    assert whole["usage"]["completion_tokens"] == (9 if ignored else 1)
    assert whole["choices"][0]["finish_reason"] == ("length" if ignored else "stop")
    assert whole["choices"][0]["text"] == ""


def test_the_official_openai_client(with_model: Server) -> None:
    from openai import BadRequestError, NotFoundError, OpenAI

    with OpenAI(base_url=f"http://127.0.0.1:{with_model.port}/v1", api_key="none", max_retries=0) as client:
        model = client.models.list().data[0].id
        ask: dict[str, Any] = {"model": model, "prompt": "The king", "max_tokens": 12}
        whole = client.completions.create(**ask, temperature=0, logprobs=2)
        assert whole.choices[0].logprobs is not None
        assert len(whole.choices[0].logprobs.tokens or []) == 12
        parts = [
            part.choices[0].text for part in client.completions.create(**ask, temperature=0, stream=True)
        ]
        assert "".join(parts) == whole.choices[0].text
        several = client.completions.create(**ask, n=2, best_of=3, seed=1, echo=True)
        assert [choice.text.startswith("The king") for choice in several.choices] == [True, True]
        assert several.usage is not None
        assert several.usage.completion_tokens <= 36
        with pytest.raises(BadRequestError, match="max_tokens"):
            client.completions.create(**{**ask, "max_tokens": -1})
        with pytest.raises(
            BadRequestError, match="this model's maximum context length is 2048 tokens"
        ) as too_long:
            client.completions.create(**{**ask, "max_tokens": 3000})
        assert too_long.value.code == "context_length_exceeded"
        with pytest.raises(BadRequestError, match=r"response_format=.*is not supported"):
            client.completions.create(**ask, extra_body={"response_format": {"type": "json_object"}})
        assert client.models.retrieve(model).id == model == "gpt-j"
        with pytest.raises(NotFoundError, match="'gpt-4' does not exist") as unknown:
            client.models.retrieve("gpt-4")
        assert unknown.value.code == "model_not_found"
        with pytest.raises(NotFoundError, match="POST /v1/embeddings is not served"):
            client.embeddings.create(model=model, input="a")
        with pytest.raises(BadRequestError, match="chat template"):
            client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hi"}])


@pytest.mark.parametrize("path", ["", "/", "/invocations", "/generate"])
def test_hugging_faces_inference_client(with_model: Server, path: str) -> None:
    from huggingface_hub import InferenceClient

    client = InferenceClient(f"http://127.0.0.1:{with_model.port}{path}")
    ask: dict[str, Any] = {"prompt": "The king", "max_new_tokens": 12}
    if path == "/generate":
        told = client.text_generation(**ask, details=True, best_of=2, temperature=0.9, seed=1)
        assert len(told.details.best_of_sequences or ()) == 1
        return
    whole = client.text_generation(**ask)
    assert "".join(client.text_generation(**ask, stream=True)) == whole
    detailed = client.text_generation(**ask, details=True, stop=["the"])
    assert detailed.details is not None
    assert detailed.generated_text in whole
    *_, last = client.text_generation(**ask, details=True, stream=True)
    assert last.generated_text == whole


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_client_that_goes_away_frees_its_sequence(either: Server, stream: bool) -> None:
    before = either.settle()
    given_up = metric(either, "gptj_requests_cancelled_total")
    with ThreadPoolExecutor(1) as pool:
        neighbour = pool.submit(either.generate, "The king", max_new_tokens=30, min_new_tokens=30)
        with never_reading(either, "/invocations", {"inputs": "And", "parameters": LONG, "stream": stream}):
            pass_on(either)
            until(lambda: either.figures().num_running)
        assert neighbour.result().status == 200
    after = either.settle()
    assert after.num_cancelled == before.num_cancelled + 1
    assert after.num_finished == before.num_finished + 1
    assert metric(either, "gptj_requests_cancelled_total") == given_up + 1


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_client_that_goes_away_costs_one_more_step_at_most(either: Server, stream: bool) -> None:
    """By the engine's counters; a neighbour that starts in the same step tells how many steps there were."""
    alone = either.generate("The king", **SHORT).text
    for _ in range(5):
        before = either.settle()
        data, num_steps = give_up_beside_a_neighbour(either, stream)
        after = either.settle()
        assert f'"generated_text":{json.dumps(alone)}' in data
        assert after.num_cancelled == before.num_cancelled + 1
        num_others = SHORT["max_new_tokens"] + BEFORE["max_new_tokens"]
        made = after.num_generated_tokens - before.num_generated_tokens - num_others
        # else this process was held up for so long that one had ended before the other was given up
        if made and num_steps < SHORT["max_new_tokens"]:
            break
    # one that the engine was busy with, one that it made before it listened
    assert 0 < made <= num_steps + 2
    assert 5 <= num_steps < SHORT["max_new_tokens"]


def give_up_beside_a_neighbour(server: Server, stream: bool) -> tuple[str, int]:
    """What a neighbour gets of one that is given up, and how many of its tokens there were by then."""

    def asking(prompt: str, parameters: Any, stream: bool = True) -> Any:
        return never_reading(
            server, "/invocations", {"inputs": prompt, "parameters": parameters, "stream": stream}
        )

    with asking("A", BEFORE) as first:
        first.recv(1)  # a static batch runs: those that come meanwhile begin together when it ends
        with contextlib.ExitStack() as stack:
            with server.engine_stopped():
                neighbour = stack.enter_context(asking("The king", SHORT))
                pass_on(server)  # so that the other is not before it
                gone = stack.enter_context(asking("And", LONG, stream))
                pass_on(server)
            data = b""
            while data.count(b'"index"') < 5:
                data += neighbour.recv(400)
            with server.engine_stopped():
                pass_on(server)
                data += read_what_is_there(neighbour)
                num_steps = data.count(b'"index"')
                given_up = metric(server, "gptj_requests_cancelled_total")
                gone.close()
                # the front, which is awake, has told the engine
                until(lambda: metric(server, "gptj_requests_cancelled_total") == given_up + 1)
            if not data.endswith(LAST_CHUNK):
                data += read_on(neighbour, LAST_CHUNK)
        read_on(first, LAST_CHUNK)
    return data.decode(), num_steps


def test_more_than_the_queue_holds_is_refused_at_once() -> None:
    with serving(**WITHOUT_MODEL, GPTJ_FRONT="http", GPTJ_MAX_BATCH_SIZE="1", GPTJ_MAX_QUEUE="1") as server:
        document = {"inputs": "And", "parameters": BEFORE, "stream": True}
        with contextlib.ExitStack() as stack:
            with server.engine_stopped():  # so that nobody but the front can refuse
                accepted = [
                    stack.enter_context(never_reading(server, "/invocations", document)) for _ in range(2)
                ]
                pass_on(server)
                refused, idle = [], []
                for _ in range(9):
                    refused.append(server.generate("And", max_new_tokens=2))
                    idle.append(server.get("/ping"))
            busy = [server.get("/ping") for _ in range(9)]
            for sock in accepted:
                assert read_on(sock, LAST_CHUNK).startswith(b"HTTP/1.1 200")
        assert {one.status for one in refused} == {429}
        assert all(int(one.headers["retry-after"]) >= 1 for one in refused)
        assert {one.status for one in (*idle, *busy)} == {200}
        # beside what any answer takes on this machine at that moment
        idle_s, refused_s, busy_s = (
            statistics.median(one.seconds for one in answers) for answers in (idle, refused, busy)
        )
        assert refused_s < idle_s + 0.05
        assert busy_s < idle_s + 0.1
        assert metric(server, "gptj_requests_refused_total") == 9


def test_deadlines(front: Server) -> None:
    late = front.post(json.dumps({"inputs": "And", "parameters": LONG}), **{"X-Request-Timeout": "0.5"})
    assert (late.status, late.json["error_type"]) == (504, "timeout")
    document = {"inputs": "And", "parameters": LONG, "stream": True}
    parts = cut_at_its_deadline(front, "/invocations", document)
    assert parts[-1]["details"]["finish_reason"] == "length"  # all that TGI's clients know
    assert parts[-1]["generated_text"] == "".join(part["token"]["text"] for part in parts)
    document = {"prompt": "And", "max_tokens": 1500, "min_tokens": 1500, "stream": True}
    *_, last, done = cut_at_its_deadline(front, "/v1/completions", document)
    assert (last["choices"][0]["finish_reason"], done) == ("deadline", "[DONE]")
    bad = front.post(json.dumps({"inputs": "And"}), **{"X-Request-Timeout": "soon"})
    assert (bad.status, "x-request-timeout" in bad.json["error"]) == (400, True)
    front.settle()


def cut_at_its_deadline(server: Server, path: str, document: Any) -> list[Any]:
    """The events of a stream that begins in time, and whose engine then stands still until the deadline."""
    timeout_s = 4.0
    deadline_s = time.monotonic() + timeout_s
    with opened(server, path, document, **{"X-Request-Timeout": str(timeout_s)}) as answer:
        with server.engine_stopped():
            time.sleep(max(0.0, deadline_s - time.monotonic()))
        return read_events(answer)


def test_a_stream_that_never_began_is_an_error(front: Server) -> None:
    document = {"inputs": "And", "stream": True}
    with (
        front.engine_stopped(),
        opened(front, "/invocations", document, **{"X-Request-Timeout": "0.3"}) as answer,
    ):
        late = json.loads(answer.read())
    assert (answer.status, late["error_type"]) == (504, "timeout")
    front.settle()


def test_headers_tell_what_a_request_took(front: Server) -> None:
    answer = front.post(
        json.dumps({"inputs": "In the beginning", "parameters": {"max_new_tokens": 5, "min_new_tokens": 5}}),
        **{"X-Request-Id": "mine-1", "X-Amzn-SageMaker-Custom-Attributes": "a=b; c"},
    )
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.headers["x-amzn-sagemaker-custom-attributes"] == "a=b; c"
    assert answer.headers["x-generated-tokens"] == "5"
    assert int(answer.headers["x-prompt-tokens"]) > 0
    for name in ("x-queue-time", "x-inference-time", "x-time-per-token"):
        assert float(answer.headers[name]) >= 0
    assert "server" not in answer.headers


@pytest.mark.parametrize(
    ("document", "status"),
    [({"inputs": "And", "stream": True}, 200), ({"inputs": ""}, 400), ({"prompt": "a", "n": 0}, 400)],
)
def test_streams_and_errors_have_their_headers(front: Server, document: Any, status: int) -> None:
    sent = {"X-Request-Id": "mine-2", "X-Amzn-SageMaker-Custom-Attributes": "trace=1"}
    with opened(front, "/invocations", document, **sent) as answer:
        answer.read()
    assert answer.status == status
    assert answer.headers["x-request-id"] == "mine-2"
    assert answer.headers["x-amzn-sagemaker-custom-attributes"] == "trace=1"
    assert answer.headers["server"] is None
    assert answer.headers["access-control-allow-origin"] is None


def test_headers_that_cannot_come_back(front: Server) -> None:
    sent = {"X-Request-Id": "not mine!", "X-Amzn-SageMaker-Custom-Attributes": "a" * 1025}
    answer = front.post(json.dumps({"inputs": "And", "parameters": {"max_new_tokens": 1}}), **sent)
    assert answer.status == 200
    assert len(answer.headers["x-request-id"]) == 36
    assert "x-amzn-sagemaker-custom-attributes" not in answer.headers


def test_metrics_count(front: Server) -> None:
    before = front.settle().num_generated_tokens
    front.generate("In", max_new_tokens=7, min_new_tokens=7)
    until(lambda: metric(front, "gptj_generation_tokens_total") == before + 7)
    assert metric(front, "gptj_time_to_first_token_seconds_count") > 0


def test_tgis_paths(front: Server) -> None:
    document = {"inputs": "The king", "parameters": {"max_new_tokens": 12, "details": True}}

    def ask(path: str, body: Any) -> Any:
        with opened(front, path, body) as answer:
            return answer.status, json.loads(answer.read())

    status, (entry,) = ask("/invocations", document)
    assert (status, entry["details"]["finish_reason"]) == (200, "length")
    assert ask("/", document) == (200, [entry])
    assert ask("/generate", document) == ask("/generate", {**document, "stream": False}) == (200, entry)
    for path, asked in (("/generate_stream", document), ("/", {**document, "stream": True})):
        *_, last = events(front, path, asked)
        assert (last["generated_text"], last["index"]) == (entry["generated_text"], 12)
    # large bodies are read in another process
    large = {"inputs": "a" + " b" * 20_000, "parameters": {"truncate": 3, "max_new_tokens": 2}}
    (answer,) = ask("/invocations", large)[1]
    assert ask("/generate", large) == (200, answer)
    wrong = {
        "inputs: must be a string here": {"inputs": ["The king"]},
        "parameters.num_return_sequences=2: must be 1 here": {
            "inputs": "a",
            "parameters": {"num_return_sequences": 2, "top_k": 5},
        },
        "stream=true: /generate_stream is the path": {**document, "stream": True},
    }
    for message, body in wrong.items():
        status, refused = ask("/generate", body)
        assert (status, refused["error_type"]) == (400, "validation")
        assert refused["error"].startswith(message)
    assert ask("/generate_stream", {**document, "stream": False})[0] == 400


def test_tgis_info(front: Server) -> None:
    info = front.get("/info").json
    assert (info["max_total_tokens"], info["max_input_tokens"], info["max_best_of"]) == (2048, 2047, 4)
    assert info["model_id"] == front.get("/v1/models").json["data"][0]["id"]
    assert (info["model_name"], info["engine"]) == ("demo", front.events("ready")[0]["engine"])


def test_metrics_name_the_engine(either: Server) -> None:
    engine = either.events("ready")[0]["engine"]
    batching = {"hf": "static", "fused": "continuous"}[engine]
    lines = either.get("/metrics").body.decode().splitlines()
    (line,) = [one for one in lines if "gptj_engine_info{" in one]
    assert f'engine="{engine}"' in line
    assert f'batching="{batching}"' in line
    assert "gptj_preemptions_total 0.0" in lines


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("POST", "/v1/embeddings", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models/gpt-j", 405),
        ("GET", "/invocations", 405),
        ("DELETE", "/ping", 405),
        ("OPTIONS", "/invocations", 405),
        ("PUT", "/", 405),
        ("GET", "/generate", 405),
        ("POST", "/info", 405),
        ("GET", "/", 200),
    ],
)
def test_other_paths_and_methods(front: Server, method: str, path: str, status: int) -> None:
    answer = front.get(path, method)
    assert answer.status == status
    if path.startswith("/v1/"):
        told = answer.json["error"]
        assert told["type"] == "invalid_request_error"
        assert told["code"] == {404: "not_found", 405: "method_not_allowed"}[status]
    elif status != 200:
        assert set(answer.json) == {"error", "error_type"}
        assert ("GPTJ_CORS_ORIGINS" in answer.json["error"]) == (method == "OPTIONS")
    assert "server" not in answer.headers


def test_a_body_is_refused_before_it_is_read(front: Server) -> None:
    with socket.create_connection(("127.0.0.1", front.port), timeout=WAIT_TIMEOUT_S) as sock:
        head = b"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n"
        sock.sendall(head)
        assert sock.recv(100).startswith(b"HTTP/1.1 413")


def test_a_body_of_unknown_length_is_read_up_to_the_limit(front: Server) -> None:
    chunk = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
    with socket.create_connection(("127.0.0.1", front.port), timeout=WAIT_TIMEOUT_S) as sock:
        sock.sendall(b"POST /invocations HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(7):
            sock.sendall(chunk)
        assert sock.recv(100).startswith(b"HTTP/1.1 413")


def test_a_long_head_is_refused(front: Server) -> None:
    with socket.create_connection(("127.0.0.1", front.port), timeout=WAIT_TIMEOUT_S) as sock:
        sock.sendall(b"GET /ping HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 40_000)
        assert sock.recv(100).startswith(b"HTTP/1.1 431")


TIMES = {
    ("protocol", "SEND_TIMEOUT_S"): 30.0,
    ("protocol", "HEADER_TIMEOUT_S"): 10.0,
    ("body", "READ_TIMEOUT_S"): 10.0,
}
HURRY = """
import sys

import engine_without_model

if "gptj_serve.serving.http" in sys.orig_argv:
    from gptj_serve.serving.http import body, protocol

    for (module, name), seconds in {times}.items():
        assert getattr(globals()[module], name) == seconds
        setattr(globals()[module], name, 3.0)
"""


@pytest.fixture(scope="module")
def hurried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that gives slow clients up after three seconds, in place of `TIMES`."""
    folder = tmp_path_factory.mktemp("hurried")
    (folder / "sitecustomize.py").write_text(HURRY.format(times=TIMES))
    with serving(GPTJ_FRONT="http", PYTHONPATH=python_path(folder, WITHOUT_MODEL_DIR)) as running:
        yield running


def test_slow_heads_and_bodies_are_given_up(hurried: Server) -> None:
    """All at the same time; a client that sends a byte now and then gains nothing."""
    begun = b"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n"
    heads = {"silent": b"", "half a head": begun, "half a body": begun + b"\r\n{"}

    def seconds_until_closed(first: bytes) -> float:
        started_s = time.monotonic()
        with socket.create_connection(("127.0.0.1", hurried.port), timeout=1) as sock:
            sock.sendall(first)
            while time.monotonic() < started_s + 30:
                try:
                    if not sock.recv(1000):
                        return time.monotonic() - started_s
                except TimeoutError:
                    pass
                except ConnectionError:  # it was closed, and then another byte was sent
                    return time.monotonic() - started_s
                with contextlib.suppress(OSError):
                    sock.sendall(b"x" if first.endswith(b"{") else b"")
            raise AssertionError("still open")

    with ThreadPoolExecutor(3) as pool:
        seconds = dict(zip(heads, pool.map(seconds_until_closed, heads.values()), strict=True))
    assert all(2.5 < value < 9 for value in seconds.values()), seconds
    assert hurried.generate("In", max_new_tokens=1).status == 200


def bytes_left(sock: socket.socket) -> int:
    """What still comes before the connection ends."""
    num_bytes = 0
    with contextlib.suppress(ConnectionError):
        while part := sock.recv(1 << 16):
            num_bytes += len(part)
    return num_bytes


def remote_ports(process: psutil.Process) -> set[int]:
    """Whom a process is connected with."""
    return {one.raddr.port for one in process.net_connections("tcp") if one.raddr}


def test_a_reader_that_never_reads_holds_nothing_for_long(hurried: Server) -> None:
    """After its time the connection is gone with all that waits for it, and a stream's sequences."""
    before = hurried.settle()
    given_up = metric(hurried, "gptj_requests_cancelled_total")
    (process,) = (one for one in hurried.processes_of(FRONT) if one.ppid() == hurried.process.pid)
    length = {"max_new_tokens": 300, "min_new_tokens": 300, "do_sample": True, "num_return_sequences": 4}
    whole = {"inputs": "And", "parameters": {**length, "details": True, "top_n_tokens": 5}}
    streamed = {
        "prompt": "And",
        "n": 2,
        "logprobs": 5,
        "max_tokens": 1900,
        "min_tokens": 1900,
        "stream": True,
    }
    opened_s = time.monotonic()
    with (
        never_reading(hurried, "/invocations", whole) as answer,
        never_reading(hurried, "/v1/completions", streamed) as stream,
    ):
        until(lambda: hurried.figures().num_finished == before.num_finished + 4)
        # of the stream, more bytes than all buffers hold, and a while before its sequences would end
        until(lambda: hurried.figures().num_generated_tokens > before.num_generated_tokens + 1200 + 1000)
        with hurried.engine_stopped():
            ports = {sock.getsockname()[1] for sock in (answer, stream)}
            until(lambda: not ports & remote_ports(process))
            assert time.monotonic() - opened_s >= 3
        # what the kernel had taken; the answers have more
        assert 0 < bytes_left(answer) < 400_000
        assert 0 < bytes_left(stream) < 400_000
    after = hurried.settle()
    assert after.num_cancelled == before.num_cancelled + 2
    assert metric(hurried, "gptj_requests_cancelled_total") == given_up + 1
    assert hurried.generate("In", max_new_tokens=1).status == 200


TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with what is not the default: a model that can chat, web origins, no page, a high port."""
    model_dir = tmp_path_factory.mktemp("model") / "demo"
    shutil.copytree(demo.MODEL_DIR, model_dir)
    (model_dir / "chat_template.jinja").write_text(TEMPLATE)
    (model_dir / "generation_config.json").write_text(json.dumps(GENERATION_CONFIG))
    env = {"GPTJ_MODEL_DIR": str(model_dir), "GPTJ_CORS_ORIGINS": "https://a.example", "GPTJ_PAGE": "off"}
    env["GPTJ_MODEL_NAME"] = "me/my-gpt-j"
    port = free_port(61000, 65000)  # above the ephemeral ones
    with contextlib.closing(Server(GPTJ_FRONT="http", GPTJ_PORT=str(port), **env)) as running:
        running.port = port
        yield running.wait_until_ready()


def test_the_models_own_defaults(configured: Server) -> None:
    from transformers import AutoTokenizer, GPTJForCausalLM

    model = GPTJForCausalLM.from_pretrained(demo.MODEL_DIR)
    tokenizer = AutoTokenizer.from_pretrained(demo.MODEL_DIR)

    def reference(**options: Any) -> str:
        inputs = tokenizer("The king", return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=16, do_sample=False, **options)[0]
        return str(tokenizer.decode(ids[inputs.input_ids.shape[1] :], skip_special_tokens=True))

    held = {"no_repeat_ngram_size": 2, "repetition_penalty": 1.3}
    assert configured.generate("The king", max_new_tokens=16).text == reference(**held)
    off = {"no_repeat_ngram_size": 0, "repetition_penalty": 1.0}
    assert configured.generate("The king", max_new_tokens=16, **off).text == reference()
    assert reference(**held) != reference()
    told = [one["message"] for one in configured.events("model_note")]
    assert [one.partition("generation_config.json: ")[2] for one in told] == [
        "temperature=0.7: requests alone say how to sample and how much",
        "num_beams=4: is not supported and ignored",
        "eos_token_id=[0, 50256]: the model knows ids from 0 to 2047;"
        " what is not among them never ends a text",
    ]


def test_the_official_openai_client_chats(configured: Server) -> None:
    from openai import OpenAI

    with OpenAI(base_url=f"http://127.0.0.1:{configured.port}/v1", api_key="none", max_retries=0) as client:
        ask: dict[str, Any] = {"model": "any", "messages": [{"role": "user", "content": "Who is the king?"}]}
        ask |= {"max_tokens": 8, "temperature": 0}
        whole = client.chat.completions.create(**ask, logprobs=True, top_logprobs=2)
        text = whole.choices[0].message.content
        assert text
        prompt = "user: Who is the king?\nassistant:"
        assert text == configured.generate(prompt, max_new_tokens=8).text
        parts = list(client.chat.completions.create(**ask, stream=True))
        assert "".join(part.choices[0].delta.content or "" for part in parts) == text
        assert {whole.model, *(part.model for part in parts)} == {"me/my-gpt-j"}
        assert client.models.retrieve("me/my-gpt-j").id == client.models.list().data[0].id == "me/my-gpt-j"


def test_the_official_openai_client_goes_on_with_a_conversation(configured: Server) -> None:
    from openai import BadRequestError, OpenAI

    with OpenAI(base_url=f"http://127.0.0.1:{configured.port}/v1", api_key="none", max_retries=0) as client:
        first: Any = {"role": "user", "content": [{"type": "text", "text": "Who is the king?"}]}
        no_ops: dict[str, Any] = {
            "tools": [],
            "tool_choice": "none",
            "response_format": {"type": "text"},
            "store": False,
            "metadata": {"a": "b"},
            "service_tier": "auto",
            "user": "me",
            "extra_body": {"add_special_tokens": False},
        }
        ask: dict[str, Any] = {"model": "any", "max_tokens": 8, "temperature": 0, **no_ops}
        whole = client.chat.completions.create(**ask, messages=[first])
        said = whole.choices[0].message
        for message in (said, said.model_dump()):
            talk: list[Any] = [first, message, {"role": "user", "content": "And then?", "name": "me"}]
            answer = client.chat.completions.create(**ask, messages=talk)
            prompt = f"user: Who is the king?\nassistant: {said.content}\nuser: And then?\nassistant:"
            same = configured.generate(prompt, max_new_tokens=8)
            assert answer.choices[0].message.content == same.text
        tool: Any = {"type": "function", "function": {"name": "f", "parameters": {}}}
        with pytest.raises(BadRequestError, match=r"body.tools=.*is not supported"):
            client.chat.completions.create(**{**ask, "tools": [tool]}, messages=[first])


def test_web_pages_of_allowed_origins(configured: Server) -> None:
    for origin, allowed in (("https://a.example", "https://a.example"), ("https://b.example", None)):
        document = {"inputs": "a", "parameters": {"max_new_tokens": 1}}
        with opened(configured, "/invocations", document, Origin=origin) as answer:
            answer.read()
        assert answer.headers["access-control-allow-origin"] == allowed


def test_the_page_can_be_switched_off(configured: Server) -> None:
    refused = configured.get("/")
    assert (refused.status, refused.headers["allow"]) == (405, "POST")
    assert [*configured.get("/openapi.json").json["paths"]["/"]] == ["post"]


def test_an_engine_that_dies_ends_a_stream_with_an_error() -> None:
    with serving(**WITHOUT_MODEL, GPTJ_FRONT="http") as server:
        with opened(server, "/invocations", {"inputs": "And", "parameters": LONG, "stream": True}) as answer:
            answer.read(10)
            server.engine().kill()
            rest = answer.read().decode()
        assert json.loads(rest.strip().split("\n\n")[-1][6:])["error_type"] == "unavailable"
        assert server.wait_for_exit() != 0


@pytest.fixture(scope="module")
def impatient() -> Iterator[Server]:
    """A server that soon calls an engine stalled."""
    with serving(**WITHOUT_MODEL, GPTJ_FRONT="http", GPTJ_STALL_TIMEOUT_S="3") as running:
        yield running


def test_a_stalled_engine_is_not_healthy(impatient: Server) -> None:
    document = {"inputs": "And", "parameters": LONG, "stream": True}
    with opened(impatient, "/invocations", document) as answer:
        assert impatient.get("/ping").status == 200
        with impatient.engine_stopped():
            until(lambda: impatient.get("/ping").status == 503)
            assert "has not moved" in impatient.get("/ping").json["error"]
        until(lambda: impatient.get("/ping").status == 200)
        assert len(answer.read(50_000)) == 50_000  # more than could wait for it: the stream goes on


def test_sigterm_lets_a_stream_finish(impatient: Server) -> None:
    """The last test of that server."""
    document = {"inputs": "And", "parameters": SHORT, "stream": True}
    with opened(impatient, "/invocations", document) as answer:
        answer.read(10)
        with impatient.engine_stopped():
            impatient.signal(signal.SIGTERM)
            impatient.wait_for("stopping")
        rest = answer.read().decode()
    last = json.loads(rest.strip().split("\n\n")[-1][6:])
    assert last["details"]["generated_tokens"] == SHORT["max_new_tokens"]
    assert impatient.wait_for_exit() == 0


def large(document: Any, num_bytes: int = 6_000_000) -> bytes:
    """A body of megabytes: of a document, whose ``prompt`` is repeated until it is that long."""
    prompts = [document["prompt"]]
    return json.dumps({**document, "prompt": prompts * (num_bytes // len(json.dumps(prompts)))}).encode()


TAKES_LONG = large({"prompt": [7]})
"""Refused after a second of parsing."""


def send_body(server: Server, body: bytes, **headers: str) -> socket.socket:
    """A client that has sent its request and not read the answer."""
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items()]
    head = f"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n{''.join(lines)}\r\n"
    sock = socket.create_connection(("127.0.0.1", server.port), WAIT_TIMEOUT_S)
    sock.sendall(head.encode() + body)
    return sock


def status_of(sock: socket.socket) -> int:
    return int(sock.makefile("rb").readline().split()[1])


class TestLargeBodies:
    """They are parsed apart, under their deadline, and only while their clients are there."""

    def test_nobody_else_waits_for_them(self, front: Server) -> None:
        def longest_ping() -> float:
            with contextlib.closing(send_body(front, TAKES_LONG)) as sock, ThreadPoolExecutor(1) as pool:
                status = pool.submit(status_of, sock)
                seconds = []
                while not status.done():
                    seconds.append(front.get("/ping").seconds)
                assert (status.result(), len(seconds) > 10) == (400, True)
                return max(seconds)

        assert least(longest_ping, enough=0.15) < 0.15

    def test_a_client_that_goes_away_is_forgotten(self, front: Server) -> None:
        given_up = metric(front, "gptj_requests_cancelled_total")
        for _ in range(12):
            send_body(front, TAKES_LONG).close()
        answer = front.post(json.dumps({"inputs": "a" + " b" * 20_000, "parameters": {"truncate": 3}}))
        assert answer.status == 200
        assert answer.seconds < 6  # it would have been 12 times a second and more
        until(lambda: metric(front, "gptj_requests_cancelled_total") == given_up + 12)
        until(lambda: len(front.processes_of(FRONT)) == 2)

    def test_the_deadline_counts_from_the_head(self, front: Server) -> None:
        with contextlib.closing(send_body(front, TAKES_LONG, X_Request_Timeout="0.2")) as sock:
            started_s = time.monotonic()
            assert status_of(sock) == 504
            assert time.monotonic() - started_s < 2

    def test_more_than_may_wait_are_refused(self, front: Server) -> None:
        document = large({"prompt": [7]}, 1_000_000)  # all of them together are not too large
        socks = [send_body(front, document) for _ in range(NUM_PLACES + MAX_WAITING + 6)]
        try:
            statuses = [status_of(sock) for sock in socks]
            assert set(statuses) == {400, 429}
            assert front.generate("In", max_new_tokens=1).status == 200
        finally:
            for sock in socks:
                sock.close()
        until(lambda: front.post(large({"prompt": [7]}, 100_000)).status == 400)
