"""The OpenAPI document is true: whatever is sent, what comes back is in it.

A small number of requests in each run of the suite; the full measure is

    scripts/test tests/serving/http/test_openapi.py --api-requests 2000
"""

import collections
import contextlib
import json
import shutil
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import CHECKS

from gptj_serve import demo
from support.server import WITHOUT_MODEL, Server, serving

TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"
SMALL = 60
"""Up to this many requests, the same ones are sent each time."""


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose model can chat, with a context so short that every answer is."""
    model_dir = tmp_path_factory.mktemp("model") / "demo"
    shutil.copytree(demo.MODEL_DIR, model_dir)
    (model_dir / "chat_template.jinja").write_text(TEMPLATE)
    env = {"GPTJ_MODEL_DIR": str(model_dir), "GPTJ_MAX_CONTEXT": "48", "GPTJ_MAX_BATCH_SIZE": "4"}
    with serving(**WITHOUT_MODEL, GPTJ_FRONT="http", **env) as running:
        yield running


@pytest.fixture(scope="module")
def document(front: Server) -> Any:
    return front.get("/openapi.json").json


def test_every_path_is_there(front: Server, document: Any) -> None:
    found = {(path, method.upper()) for path, item in document["paths"].items() for method in item}
    assert found == {
        ("/", "GET"),
        ("/", "POST"),
        ("/generate", "POST"),
        ("/generate_stream", "POST"),
        ("/info", "GET"),
        ("/health", "GET"),
        ("/invocations", "POST"),
        ("/metrics", "GET"),
        ("/openapi.json", "GET"),
        ("/ping", "GET"),
        ("/v1/chat/completions", "POST"),
        ("/v1/completions", "POST"),
        ("/v1/models", "GET"),
        ("/v1/models/{name}", "GET"),
    }
    for path, method in found:
        refused = front.get(path, "PUT")
        assert refused.status == 405
        assert method in refused.headers["allow"]
        check_answer(document, path, method, 405, refused.headers["content-type"], refused.body)


def test_whatever_is_sent_the_answer_is_documented(
    front: Server, document: Any, request: pytest.FixtureRequest
) -> None:
    num_requests = request.config.getoption("--api-requests")
    api = schemathesis.openapi.from_dict(document)
    operations = [one.ok() for one in api.get_all_operations()]
    asking = [one for one in operations if one.method == "post"]
    counts: collections.Counter[tuple[str, int]] = collections.Counter()
    with requests.Session() as session:
        for operation in operations:
            modes = list(GenerationMode) if operation in asking else [GenerationMode.POSITIVE]
            each = -(-num_requests // (2 * len(asking))) if operation in asking else 1
            for mode in modes:
                drive(front, document, operation.as_strategy(generation_mode=mode), each, session, counts)
    print(
        json.dumps({f"{path} {status}": count for (path, status), count in sorted(counts.items())}, indent=1)
    )
    assert sum(counts.values()) >= num_requests
    assert {path for path, status in counts if status == 200} >= {one.path for one in operations}
    assert not front.events("unexpected error")
    assert "Traceback" not in front.log


def drive(
    front: Server,
    document: Any,
    cases: Any,
    num_requests: int,
    session: requests.Session,
    counts: collections.Counter[tuple[str, int]],
) -> None:
    """Send requests until one is not answered as documented."""

    @settings(
        max_examples=num_requests,
        derandomize=num_requests <= SMALL,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def send(case: Case) -> None:
        if is_short(case.headers.get("x-request-timeout")):
            case.headers["x-request-timeout"] = "30"  # a 504 would be the right answer
        answer = case.call(base_url=f"http://127.0.0.1:{front.port}", session=session, timeout=60)
        counts[case.operation.path, answer.status_code] += 1
        # whether a body suits the model, no schema can tell
        case.validate_response(answer, excluded_checks=[CHECKS.get_one("positive_data_acceptance")])
        check_answer(
            document,
            case.operation.path,
            case.method,
            answer.status_code,
            answer.headers["content-type"][0],
            answer.content,
        )

    send()


def is_short(seconds: Any) -> bool:
    with contextlib.suppress(TypeError, ValueError):
        return 0 < float(seconds) < 30
    return False


def check_answer(document: Any, path: str, method: str, status: int, content_type: str, body: bytes) -> None:
    """The answer's body, or each event of it, is what the document says."""
    operation = document["paths"][path][method.lower()]
    assert str(status) in operation["responses"], (status, body)
    kind = content_type.partition(";")[0]
    content = operation["responses"][str(status)]["content"][kind]
    if kind == "text/event-stream":
        for event in body.decode().strip().split("\n\n"):
            if event != "data: [DONE]":
                check(document, events_of(content), json.loads(event.removeprefix("data: ")))
    elif kind == "application/json":
        check(document, content["schema"], json.loads(body))


def events_of(content: Any) -> Any:
    """The schema of what a stream's events carry."""
    return content["schema"]["properties"]["data"]["anyOf"][0]["contentSchema"]


def check(document: Any, schema: Any, value: Any) -> None:
    jsonschema_rs.validate({**schema, "components": document["components"]}, value)


STREAMS: list[tuple[str, Any]] = [
    ("/invocations", {"inputs": "In the", "parameters": {"max_new_tokens": 4, "top_n_tokens": 2}}),
    ("/invocations", {"inputs": "In the", "parameters": {"max_new_tokens": 4, "stop": "the"}}),
    ("/invocations", {"prompt": "In the", "max_tokens": 4, "logprobs": 2}),
    ("/invocations", {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]}),
    ("/v1/completions", {"prompt": ["In", "the"], "max_tokens": 4, "n": 2, "echo": True}),
    ("/v1/completions", {"prompt": [1, 2], "stream_options": {"include_usage": True}}),
    (
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": "Hi"}],
            "logprobs": True,
            "top_logprobs": 2,
            "max_tokens": 4,
        },
    ),
    (
        "/invocations",
        {
            "inputs": "a",
            "parameters": {
                "details": True,
                "max_new_tokens": 4,
                "temperature": 0.7,
                "min_p": 0.1,
                "seed": -1,
            },
        },
    ),
]


@pytest.mark.parametrize(("path", "ask"), STREAMS, ids=lambda value: str(value)[:40])
@pytest.mark.parametrize("stream", [False, True])
def test_answers_and_streams(front: Server, document: Any, path: str, ask: Any, stream: bool) -> None:
    operation = document["paths"][path]["post"]
    ask = {**ask, "stream": stream} if stream or "stream_options" not in ask else {"prompt": [1, 2]}
    check(document, operation["requestBody"]["content"]["application/json"]["schema"], ask)
    answer = requests.post(f"http://127.0.0.1:{front.port}{path}", json=ask, timeout=60)
    assert answer.status_code == 200, answer.content
    assert answer.headers["content-type"].startswith("text/event-stream") == stream
    check_answer(document, path, "post", 200, answer.headers["content-type"], answer.content)


def test_fields_have_their_ranges(document: Any) -> None:
    schemas = document["components"]["schemas"]
    fields = schemas["HuggingFaceRequest"]["properties"]["parameters"]["anyOf"][0]["properties"]
    assert fields["top_p"]["anyOf"][0] == {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
    assert fields["seed"]["anyOf"][0] == {"type": "integer", "minimum": -1, "maximum": 2**64 - 1}
    assert schemas["CompletionRequest"]["properties"]["logprobs"]["anyOf"][0]["maximum"] == 5
    assert schemas["ChatCompletionRequest"]["required"] == ["messages"]


def test_a_best_of_is_documented(front: Server, document: Any) -> None:
    parameters = {"best_of": 3, "top_k": 5, "details": True, "top_n_tokens": 2, "max_new_tokens": 3}
    for path in ("/", "/generate"):
        ask = {"inputs": "a", "parameters": parameters}
        answer = requests.post(f"http://127.0.0.1:{front.port}{path}", json=ask, timeout=60)
        assert answer.content.count(b"best_of_sequences") == 1
        check_answer(document, path, "post", 200, answer.headers["content-type"], answer.content)
