"""An endpoint is asked through boto3 itself, over HTTP; only the other end is not SageMaker."""

import asyncio
import binascii
import json
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from gptj_serve.benchmark.targets.sagemaker import SageMakerTarget, connect, instance_type
from gptj_serve.benchmark.targets.target import Query, TimedAnswer
from support.loopback_server import serving

pytest.importorskip("boto3")

COUNTS = {"prompt_tokens": 3, "completion_tokens": 2}


def message(headers: dict[str, str], payload: bytes) -> bytes:
    """A message of AWS's event streams."""
    packed = b""
    for name, value in headers.items():
        packed += struct.pack("!B", len(name)) + name.encode() + b"\x07"
        packed += struct.pack("!H", len(value)) + value.encode()
    prelude = struct.pack("!II", 16 + len(packed) + len(payload), len(packed))
    whole = prelude + struct.pack("!I", binascii.crc32(prelude)) + packed + payload
    return whole + struct.pack("!I", binascii.crc32(whole))


PART = {":message-type": "event", ":event-type": "PayloadPart", ":content-type": "application/octet-stream"}
FAILED = {
    ":message-type": "exception",
    ":exception-type": "ModelStreamError",
    ":content-type": "application/json",
}


class Endpoint(BaseHTTPRequestHandler):
    """Both of the service's ways to invoke an endpoint, and its errors."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])) or b"{}")
        self.server.seen.append((self.path, asked))  # type: ignore[attr-defined]
        tokens = asked.get("max_tokens")
        if "X-Amz-Target" in self.headers:
            self._describe(asked)
        elif tokens == 429:
            self._send(
                424,
                {"OriginalStatusCode": 429, "Message": "m", "OriginalMessage": '{"error": "full"}'},
                "ModelError",
            )
        elif tokens == 400:
            self._send(400, {"message": "no such endpoint"}, "ValidationError")
        elif tokens == 60:
            self.server.is_over.wait(60)  # type: ignore[attr-defined]
        elif "stream" in asked:
            event = f"data: {json.dumps({'choices': [{'text': 'a'}], 'usage': COUNTS})}\n\n"
            parts = [event[:9], event[9:] + event, "data: [DONE]\n\n"]
            body = b"".join(message(PART, part.encode()) for part in parts)
            if tokens == 1:
                body = message(FAILED, b'{"Message": "broke"}')
            self._send(200, body, None, "application/vnd.amazon.eventstream", is_cut=tokens == 3)
        else:
            self._send(200, {"usage": COUNTS})

    def _describe(self, asked: Any) -> None:
        if asked.get("EndpointName") == "hidden":
            self._send(400, {"message": "not allowed"}, "AccessDeniedException")
        elif "EndpointName" in asked:
            self._send(200, {"EndpointConfigName": "config"})
        else:
            self._send(200, {"ProductionVariants": [{"InstanceType": "ml.g5.xlarge"}]})

    def _send(
        self,
        status: int,
        body: Any,
        error: str | None = None,
        kind: str = "application/json",
        is_cut: bool = False,
    ) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        if is_cut:
            self.send_header("transfer-encoding", "chunked")
            data = b"%x\r\n" % len(data) + data[:-3]
        else:
            self.send_header("content-length", str(len(data)))
        if error:
            self.send_header("x-amzn-errortype", error)
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with serving(Endpoint, seen=[], is_over=threading.Event()) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "none")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
        yield server
        server.is_over.set()  # type: ignore[attr-defined]


def ask(*asks: Query) -> list[TimedAnswer]:
    target = SageMakerTarget("e", "gpt-j", connect(10))

    async def ask_all() -> list[TimedAnswer]:
        answers = await asyncio.gather(*(target.ask(one) for one in asks))
        await target.close()
        return answers

    return asyncio.run(ask_all())


def test_whole_answers_and_streams(endpoint: Any) -> None:
    whole, stream = ask(Query("a b c", 2), Query("a b c", 2, stream=True))
    for answer in (whole, stream):
        assert (answer.status, answer.error) == (200, None)
        assert (answer.prompt_tokens, answer.completion_tokens) == (3, 2)
    assert (len(whole.token_s), len(stream.token_s)) == (0, 2)
    assert {path for path, _ in endpoint.seen} == {
        "/endpoints/gpt-j/invocations",
        "/endpoints/gpt-j/invocations-response-stream",
    }
    assert all((asked["max_tokens"], asked["ignore_eos"]) == (2, True) for _, asked in endpoint.seen)


def test_errors_keep_the_containers_status_and_are_not_retried(endpoint: Any) -> None:
    refused, wrong, broken = ask(Query("a", 429), Query("a", 400), Query("a", 1, stream=True))
    assert (refused.status, refused.error) == (429, "ModelError: full")
    assert (wrong.status, wrong.error) == (400, "ValidationError: no such endpoint")
    assert (broken.status, broken.error) == (500, "ModelStreamError: broke")
    assert len(endpoint.seen) == 3


def test_a_stream_that_is_cut_off_is_no_answer(endpoint: Any) -> None:
    (cut,) = ask(Query("a", 3, stream=True))
    assert cut.status == 0
    assert "IncompleteRead" in (cut.error or "")
    assert len(endpoint.seen) == 1


def test_our_end_waits_for_no_answer(endpoint: Any) -> None:
    """Who interrupts a measurement does not wait for what the endpoint still computes."""
    program = (
        "import asyncio; from gptj_serve.benchmark.targets.target import Query; "
        "from gptj_serve.benchmark.targets.sagemaker import SageMakerTarget, connect; "
        "asyncio.run(asyncio.wait_for(SageMakerTarget('e', 'e', connect(60)).ask(Query('a', 60)), 0.5))"
    )
    started_s = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "TimeoutError" in done.stderr
    assert time.monotonic() - started_s < 30
    assert endpoint.seen


def test_nobody_there(monkeypatch: pytest.MonkeyPatch, endpoint: Any) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    (answer,) = ask(Query("a", 2))
    assert answer.status == 0
    assert "Could not connect" in (answer.error or "")
    assert not endpoint.seen


def test_what_it_runs_on(endpoint: Any) -> None:
    assert instance_type("gpt-j") == "ml.g5.xlarge"
    assert "unknown instance type" in instance_type("hidden")
    assert len(endpoint.seen) == 3
