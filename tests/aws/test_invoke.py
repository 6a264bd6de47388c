"""Asking services by URL and endpoints by name: the same text either way, and errors that say enough."""

import functools
import json
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from moto.sagemaker.models import sagemaker_backends

from gptj_serve.aws.ask import async_service
from gptj_serve.aws.common import plan
from gptj_serve.aws.common.clients import Aws
from gptj_serve.aws.common.plan import Action
from gptj_serve.aws.common.s3 import S3Url
from gptj_serve.benchmark.front import fake_service
from gptj_serve.benchmark.front.fake_service import FakeService
from support.aws import sagemaker_runtime as fake
from support.aws.run_commands import Result, call, start
from support.aws.sagemaker_runtime import Answer, Answers, Asked, Runtime, payload_part
from support.server import WAIT_TIMEOUT_S, Client

PROMPT, NUM_TOKENS = "In the beginning God created", 12
TOKENS_PER_S = 200.0
ROLE = "arn:aws:iam::123456789012:role/gpt-j"


class Front(Client):
    """A front over an engine without a model: what is asked for here is how fronts answer.

    Args:
        service: What runs.
    """

    def __init__(self, service: FakeService) -> None:
        self.port, self.lines = service.port, []


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """The front that streams."""
    with fake_service.running("http", TOKENS_PER_S, tmp_path_factory.mktemp("engine") / "log") as service:
        yield Front(service)


@pytest.fixture(scope="module", params=["http", "mms"])
def service(
    request: pytest.FixtureRequest, http: Front, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Front]:
    """Each front."""
    if request.param == "http":
        yield http
        return
    with fake_service.running("mms", TOKENS_PER_S, tmp_path_factory.mktemp("engine") / "log") as service:
        yield Front(service)


@pytest.fixture(scope="module")
def text(http: Front) -> str:
    """What the model answers."""
    return http.generate(PROMPT, max_new_tokens=NUM_TOKENS).text


@pytest.fixture
def endpoint(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    """SageMaker's runtime, which answers what tests tell it to; there is an endpoint gpt-j, in service."""
    make_endpoint(aws)
    with fake.running(lambda _: Answer(200)) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", running.url)
        yield running


def make_endpoint(aws: Aws, output: str | None = None) -> None:
    """The endpoint gpt-j in moto; asynchronous if its answers go somewhere."""
    sagemaker = aws.client("sagemaker")
    sagemaker.create_model(ModelName="m", ExecutionRoleArn=ROLE, PrimaryContainer={"Image": "i"})
    variant = {
        "VariantName": "main",
        "ModelName": "m",
        "InstanceType": "ml.g4dn.xlarge",
        "InitialInstanceCount": 1,
    }
    later = {"AsyncInferenceConfig": {"OutputConfig": {"S3OutputPath": output}}} if output else {}
    sagemaker.create_endpoint_config(EndpointConfigName="c", ProductionVariants=[variant], **later)
    sagemaker.create_endpoint(EndpointName="gpt-j", EndpointConfigName="c")


def invoke(*arguments: str) -> Result:
    """Run the command in this process."""
    return call("invoke", *arguments)


def ask(target: str, *arguments: str) -> Result:
    """Ask for the text."""
    return invoke(target, PROMPT, "--max-new-tokens", str(NUM_TOKENS), *arguments)


def events(*documents: Any) -> bytes:
    """Server-sent events."""
    return b"".join(b"data: " + json.dumps(one, ensure_ascii=False).encode() + b"\n\n" for one in documents)


def token(text: str, whole: str | None = None) -> dict[str, Any]:
    """An event of the Hugging Face schema."""
    return {"token": {"id": 1, "text": text, "special": False}, "generated_text": whole, "details": None}


def pieces(data: bytes, num_bytes: int) -> tuple[bytes, ...]:
    """Payload parts of a size."""
    return tuple(payload_part(data[start : start + num_bytes]) for start in range(0, len(data), num_bytes))


def always(answer: Answer) -> Answers:
    """The same to everybody."""
    return lambda _: answer


class TestUrl:
    def test_the_text(self, service: Front, text: str) -> None:
        result = ask(f"http://127.0.0.1:{service.port}")
        assert (result.code, result.out, result.err) == (0, f"{text}\n", "")

    def test_the_whole_answer(self, service: Front, text: str) -> None:
        assert ask(f"127.0.0.1:{service.port}", "--json").json == [{"generated_text": text}]

    def test_an_error_is_the_services_own(self, service: Front) -> None:
        result = ask(f"http://127.0.0.1:{service.port}/", "--top-p", "3")
        assert (result.code, result.out) == (1, "")
        assert result.err.startswith("error: 400 validation: parameters.top_p=3.0: must be a number above 0")

    def test_a_stream(self, http: Front, text: str) -> None:
        result = ask(f"http://127.0.0.1:{http.port}", "--stream")
        assert (result.code, result.out) == (0, f"{text}\n")

    def test_a_stream_as_json_is_its_events(self, http: Front, text: str) -> None:
        lines = ask(f"http://127.0.0.1:{http.port}", "--stream", "--json").out.splitlines()
        found = [json.loads(line) for line in lines]
        assert "".join(event["token"]["text"] for event in found) == text == found[-1]["generated_text"]

    @pytest.mark.parametrize("service", ["mms"], indirect=True)
    def test_a_front_that_does_not_stream_says_so(self, service: Front) -> None:
        result = ask(f"http://127.0.0.1:{service.port}", "--stream")
        assert result.code == 1
        assert "400 validation: stream" in result.err

    @pytest.mark.parametrize("stream", [False, True])
    def test_another_path_and_another_schema(
        self, http: Front, text: str, tmp_path: Path, stream: bool
    ) -> None:
        body = {"prompt": PROMPT, "max_tokens": NUM_TOKENS, "temperature": 0, "stream": stream}
        (tmp_path / "body.json").write_text(json.dumps(body))
        url = f"http://127.0.0.1:{http.port}/v1/completions"
        assert invoke(url, "--body", str(tmp_path / "body.json")).out == f"{text}\n"

    def test_several_answers_do_not_mix(self, http: Front, tmp_path: Path) -> None:
        (tmp_path / "body.json").write_text('{"prompt": "In", "max_tokens": 4, "n": 2, "temperature": 1}')
        url, body = f"http://127.0.0.1:{http.port}/v1/completions", ("--body", str(tmp_path / "body.json"))
        result = invoke(url, *body, "--stream")
        assert result.code == 1
        assert "several answers" in result.err
        assert invoke(url, *body, "--stream", "--json").code == 0

    def test_nobody_there(self) -> None:
        result = invoke("http://127.0.0.1:9", "x")
        assert result.code == 1
        assert "nothing listens at http://127.0.0.1:9\n  scripts/run-local" in result.err

    def test_somebody_who_says_nothing(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            result = invoke(f"127.0.0.1:{silent.getsockname()[1]}", "x", "--timeout", "0.2")
        assert result.code == 1
        assert "sent nothing for 0.2 s\n  --timeout" in result.err

    def test_somebody_who_hangs_up(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:

            def hang_up() -> None:
                connection, _ = server.accept()
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nnot all")
                connection.close()

            thread = threading.Thread(target=hang_up)
            thread.start()
            result = invoke(f"127.0.0.1:{server.getsockname()[1]}", "x")
            thread.join()
        assert result.code == 1
        assert "error: http://127.0.0.1:" in result.err


class TestEndpoint:
    def test_the_text_through_sagemaker(self, endpoint: Runtime, http: Front, text: str) -> None:
        endpoint.answer = fake.passing_on(http.port)
        assert ask("gpt-j").out == f"{text}\n"
        assert ask("gpt-j", "--json").json == [{"generated_text": text}]
        assert [(one.endpoint, one.operation) for one in endpoint.asked] == [("gpt-j", fake.WHOLE)] * 2
        assert endpoint.asked[0].headers["content-type"] == "application/json"

    def test_the_default_is_gpt_j(self, endpoint: Runtime, http: Front) -> None:
        endpoint.answer = fake.passing_on(http.port)
        assert invoke(PROMPT, "--max-new-tokens", "2").code == 0
        assert endpoint.asked[0].endpoint == "gpt-j"

    @pytest.mark.parametrize("piece_bytes", [1, 7, 10**6])
    def test_a_stream_in_parts_that_respect_nothing(
        self, endpoint: Runtime, http: Front, text: str, piece_bytes: int
    ) -> None:
        endpoint.answer = fake.passing_on(http.port, piece_bytes)
        assert ask("gpt-j", "--stream").out == f"{text}\n"
        assert endpoint.asked[0].operation == fake.STREAM

    @pytest.mark.parametrize("piece_bytes", [1, 2, 3])
    def test_characters_across_parts(self, endpoint: Runtime, piece_bytes: int) -> None:
        data = events(token("żółw "), token("😀"), token("€", "żółw 😀€"))
        endpoint.answer = always(Answer(200, pieces(data, piece_bytes)))
        assert invoke("x", "--stream").out == "żółw 😀€\n"

    def test_text_comes_as_it_is_generated(self, endpoint: Runtime) -> None:
        first, rest = payload_part(events(token("one"))), payload_part(events(token(" two", "one two")))
        endpoint.answer = always(Answer(200, (first, fake.WAIT, rest)))
        process = start("invoke", "x", "--stream")
        assert process.stdout is not None
        assert process.stdout.read(3) == "one"  # while the rest waits
        endpoint.go_on.set()
        assert process.communicate(timeout=WAIT_TIMEOUT_S) == (" two\n", "")

    def test_an_inference_component(self, endpoint: Runtime, http: Front) -> None:
        endpoint.answer = fake.passing_on(http.port)
        assert ask("gpt-j", "--component", "copy").code == 0
        assert endpoint.asked[0].headers["x-amzn-sagemaker-inference-component"] == "copy"

    @pytest.mark.parametrize("names", [["gpt-j"], ["a", "b"], []])
    def test_the_only_inference_component_need_not_be_named(
        self, aws: Aws, endpoint: Runtime, names: list[str]
    ) -> None:
        for name in names:
            aws.client("sagemaker").create_inference_component(
                InferenceComponentName=name,
                EndpointName="gpt-j",
                VariantName="main",
                Specification={"ModelName": "m"},
                RuntimeConfig={"CopyCount": 1},
            )
        needed = "Inference Component Name header is required for endpoints to which you plan to deploy them"

        def answer(asked: Asked) -> Answer:
            if asked.headers.get("x-amzn-sagemaker-inference-component") != "gpt-j":
                return fake.error(400, "ValidationError", Message=needed)
            return Answer(200, (b'[{"generated_text": "text"}]',))

        endpoint.answer = answer
        result = invoke("x")
        assert (result.code, result.out) == ((0, "text\n") if len(names) == 1 else (1, ""))
        assert len(endpoint.asked) == (2 if len(names) == 1 else 1)
        if len(names) != 1:
            assert "--component names one" in result.err

    def test_what_does_not_stream_is_shown_as_it_is(self, endpoint: Runtime) -> None:
        endpoint.answer = always(Answer(200, pieces(b'[{"generated_text": "all of it"}]', 9)))
        assert invoke("x", "--stream").out == "all of it\n"


class TestEndpointErrors:
    @pytest.mark.parametrize("stream", [(), ("--stream",)])
    def test_a_model_error_is_the_services_own(
        self, endpoint: Runtime, http: Front, stream: tuple[str, ...]
    ) -> None:
        endpoint.answer = fake.passing_on(http.port)
        result = ask("gpt-j", "--top-p", "3", *stream)
        assert (result.code, result.out) == (1, "")
        assert result.err.startswith("error: 400 validation: parameters.top_p=3.0: must be a number above 0")
        assert "Received client error" not in result.err
        assert "arn:" not in result.err

    def test_a_fault_of_the_service_names_its_log(self, endpoint: Runtime) -> None:
        endpoint.answer = always(fake.model_error(503, '{"error": "gone", "error_type": "unavailable"}'))
        result = invoke("x")
        assert result.err == f"error: 503 unavailable: gone\n  its log: {fake.LOG_STREAM}\n"

    def test_it_never_asks_twice(self, endpoint: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWS_MAX_ATTEMPTS")
        endpoint.answer = always(fake.error(500, "InternalFailure", Message="sorry"))
        result = invoke("x")
        assert result.code == 1
        assert "sorry" in result.err
        assert len(endpoint.asked) == 1

    @pytest.mark.parametrize(
        ("broken", "said"),
        [
            (
                fake.exception("ModelStreamError", Message="it died", ErrorCode="StreamBroken"),
                "the stream broke off (ModelStreamError): it died",
            ),
            (
                fake.exception("InternalStreamFailure", Message="sorry"),
                "the stream broke off (InternalStreamFailure): sorry",
            ),
            (
                payload_part(events({"error": "late", "error_type": "timeout", "request_id": "r"})),
                "the stream ended with an error: timeout: late (request r)",
            ),
            (fake.CUT, "the connection to gpt-j broke"),
            (payload_part(b""), "the stream ended before the text did"),
            (payload_part(b'data: {"tok')[:-9], "the stream ended before the text did"),
        ],
    )
    def test_a_stream_that_breaks(self, endpoint: Runtime, broken: bytes, said: str) -> None:
        """What came before is shown, and the error begins a line of its own."""
        endpoint.answer = always(Answer(200, (payload_part(events(token("one"), token(" two"))), broken)))
        result = invoke("x", "--stream")
        assert (result.code, result.out) == (1, "one two\n")
        assert said in result.err

    def test_there_is_no_such_endpoint(self, endpoint: Runtime) -> None:
        endpoint.answer = always(fake.error(400, "ValidationError", Message="Endpoint not found."))
        result = invoke("no-such", "x")
        assert result.code == 1
        assert result.err.startswith("error: there is no endpoint no-such in eu-west-1\n  `scripts/status`")

    @pytest.mark.parametrize(
        ("status", "reason", "said"),
        [
            ("Creating", None, "the endpoint gpt-j is not in service, it is Creating\n"),
            ("Failed", "no such image", "it is Failed: no such image\n"),
        ],
    )
    def test_an_endpoint_that_is_not_in_service(
        self, endpoint: Runtime, moto_url: str, status: str, reason: str | None, said: str
    ) -> None:
        set_state(moto_url, status, reason)
        endpoint.answer = always(fake.error(400, "ValidationError", Message="Endpoint gpt-j not found."))
        result = invoke("x")
        assert result.code == 1
        assert said in result.err

    def test_any_other_refusal_is_passed_on(self, endpoint: Runtime) -> None:
        endpoint.answer = always(fake.error(400, "ValidationError", Message="Inference component is missing"))
        result = invoke("x")
        assert "gpt-j: Inference component is missing\n  --component" in result.err

    def test_the_permission_that_is_missing(self, endpoint: Runtime) -> None:
        arn = "arn:aws:sagemaker:eu-west-1:123456789012:endpoint/gpt-j"
        told = f"User: me is not authorized to perform: sagemaker:InvokeEndpoint on resource: {arn}"
        endpoint.answer = always(fake.error(403, "AccessDeniedException", Message=told))
        assert f"permission is missing: sagemaker:InvokeEndpoint on {arn}" in invoke("x").err

    def test_an_endpoint_that_says_nothing(self, endpoint: Runtime) -> None:
        endpoint.answer = always(Answer(200, (fake.WAIT,)))
        result = invoke("x", "--timeout", "0.3")
        assert result.code == 1
        assert "gpt-j sent nothing for 0.3 s\n  --timeout" in result.err


def set_state(moto_url: str, status: str, reason: str | None) -> None:
    """Put the endpoint into a state; moto's server runs in this process."""
    assert moto_url
    endpoint = sagemaker_backends["123456789012"]["eu-west-1"].endpoints["gpt-j"]
    endpoint.endpoint_status, endpoint.failure_reason = status, reason


class TestInterrupted:
    def test_ctrl_c_ends_a_stream(self, endpoint: Runtime) -> None:
        part = payload_part(events(token("one")))
        endpoint.answer = always(Answer(200, (part, fake.WAIT, *[payload_part(b" " * 60000)] * 200)))
        process = start("invoke", "x", "--stream")
        assert process.stdout is not None
        assert process.stdout.read(3) == "one"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=WAIT_TIMEOUT_S)
        assert (process.returncode, out, err) == (130, "\n", "\nStopped.\n")
        endpoint.go_on.set()
        assert endpoint.hung_up.wait(WAIT_TIMEOUT_S)

    def test_ctrl_c_at_a_service_cancels_its_request(self, http: Front) -> None:
        parameters = json.dumps({"max_new_tokens": 20_000, "min_new_tokens": 20_000})  # 100 s of them
        process = start("invoke", f"127.0.0.1:{http.port}", "x", "--stream", "--parameters", parameters)
        assert process.stdout is not None
        process.stdout.read(3)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=WAIT_TIMEOUT_S)
        assert process.returncode == 130
        assert http.generate("In", max_new_tokens=1).status == 200

    def test_a_reader_that_has_seen_enough(self, endpoint: Runtime) -> None:
        many = [payload_part(events(token("word " * 1000)))] * 100
        endpoint.answer = always(Answer(200, tuple(many)))
        process = start("invoke", "x", "--stream")
        assert process.stdout is not None
        assert process.stdout.read(4) == "word"
        process.stdout.close()
        assert process.stderr is not None
        err = process.stderr.read()
        assert (process.wait(WAIT_TIMEOUT_S), "Traceback" in err) == (1, False)
        process.stderr.close()


class TestAsync:
    @pytest.fixture
    def later(self, aws: Aws, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
        """An asynchronous endpoint; tests say what it puts into S3."""
        where = {"LocationConstraint": aws.region}
        aws.client("s3").create_bucket(Bucket="mine", CreateBucketConfiguration=where)
        make_endpoint(aws, "s3://mine/answers/")
        with fake.running(lambda _: Answer(200)) as running:
            monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", running.url)
            yield running

    def answering(self, aws: Aws, put: str, body: bytes, delay_s: float = 0.0) -> Answers:
        """What the endpoint does: takes a request, and puts something into S3."""

        def answer(asked: Asked) -> Answer:
            assert asked.operation == fake.ASYNC
            place = S3Url.parse(asked.headers["x-amzn-sagemaker-inputlocation"], "it")
            sent = aws.client("s3").get_object(Bucket=place.bucket, Key=place.key)
            assert json.loads(sent["Body"].read())["inputs"] == PROMPT
            save = functools.partial(aws.client("s3").put_object, Bucket="mine", Key=put, Body=body)
            if delay_s:
                threading.Timer(delay_s, save).start()
            else:
                save()
            headers = {
                "X-Amzn-SageMaker-OutputLocation": "s3://mine/answers/one.out",
                "X-Amzn-SageMaker-FailureLocation": "s3://mine/failures/one.out",
            }
            return Answer(202, (b'{"InferenceId": "1"}',), headers)

        return answer

    def keys(self, aws: Aws) -> list[str]:
        """What is in the bucket."""
        return [one["Key"] for one in aws.client("s3").list_objects_v2(Bucket="mine").get("Contents", [])]

    def test_the_answer_is_waited_for_and_the_question_taken_away(self, aws: Aws, later: Runtime) -> None:
        later.answer = self.answering(aws, "answers/one.out", b'[{"generated_text": "late"}]', 0.3)
        result = ask("gpt-j", "--async")
        assert (result.code, result.out) == (0, "late\n")
        assert "Waiting for s3://mine/answers/one.out" in result.err
        assert self.keys(aws) == ["answers/one.out"]

    def test_a_failure(self, aws: Aws, later: Runtime) -> None:
        later.answer = self.answering(aws, "failures/one.out", b'{"error": "no", "error_type": "validation"}')
        result = ask("gpt-j", "--async")
        assert result.code == 1
        assert "validation: no\n  the whole of it is at s3://mine/failures/one.out" in result.err

    @pytest.mark.parametrize("status", ["Failed", "Deleting", None])
    def test_an_endpoint_that_will_never_answer(
        self, aws: Aws, later: Runtime, moto_url: str, monkeypatch: pytest.MonkeyPatch, status: str | None
    ) -> None:
        monkeypatch.setattr(async_service, "_LOOK_S", 0.2)
        answer = self.answering(aws, "elsewhere", b"")

        def answer_and_fail(asked: Asked) -> Answer:
            if status:
                set_state(moto_url, status, "it broke")
            else:
                del sagemaker_backends["123456789012"]["eu-west-1"].endpoints["gpt-j"]
            return answer(asked)

        later.answer = answer_and_fail
        result = ask("gpt-j", "--async", "--timeout", "60")
        assert result.code == 1
        assert f"it is {status}: it broke" in result.err or "there is no endpoint gpt-j" in result.err

    def test_failures_that_have_no_place_are_told_of(self, aws: Aws, later: Runtime) -> None:
        later.answer = self.answering(aws, "answers/one.out", b'[{"generated_text": "late"}]')
        assert "(no S3FailurePath), so that this waits until --timeout" in ask("gpt-j", "--async").err

    def test_no_answer_in_time(self, aws: Aws, later: Runtime) -> None:
        later.answer = self.answering(aws, "elsewhere", b"")
        result = ask("gpt-j", "--async", "--timeout", "0.3")
        assert result.code == 1
        assert "it will be at s3://mine/answers/one.out" in result.err

    @pytest.mark.usefixtures("endpoint")
    def test_a_real_time_endpoint(self) -> None:
        result = ask("gpt-j", "--async")
        assert result.code == 1
        assert "gpt-j is a real-time endpoint\n  leave --async out" in result.err

    def test_it_does_not_exist(self, aws: Aws) -> None:
        assert aws.account
        assert "there is no endpoint other in eu-west-1" in ask("other", "--async").err


class TestCommandLine:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ([], 'expected [NAME|URL] "TEXT"'),
            (["gpt-j", "two", "words"], "a text needs quotes"),
            (["http://127.0.0.1:8080"], "what should be asked there?"),
            (["http://", "x"], "must be a URL such as http://127.0.0.1:8080"),
            (["ftp://host", "x"], "must be a URL such as"),
            (["x", "--timeout", "0"], "must be seconds above 0"),
            (["x", "--parameters", "[1]"], "must be a JSON object"),
            (["x", "--max-new-tokens", "many"], "invalid int value"),
            (["http://h:1", "x", "--async"], "only for endpoints"),
            (["x", "--async", "--stream"], "answers as a whole"),
            (["a", "b", "--body", "f"], "expected [NAME|URL], got 2 words"),
            (["--body", "f", "--seed", "1"], "--seed: --body is the whole request"),
        ],
    )
    def test_wrong_usage(self, arguments: list[str], said: str) -> None:
        result = invoke(*arguments)
        assert (result.code, result.out) == (2, "")
        assert said in result.err

    def test_options_may_stand_between_whom_and_what(self) -> None:
        """As `deploy` prints it for an inference component, and for an asynchronous endpoint."""
        asked = invoke("gpt-j", "--component", "c", "--dry-run", "In the beginning", "--json").json
        (request,) = (one["request"] for one in asked["plan"])
        assert (request["EndpointName"], request["InferenceComponentName"]) == ("gpt-j", "c")
        assert json.loads(request["Body"])["inputs"] == "In the beginning"
        for whom in ((), ("gpt-j",)):
            dashes = invoke(*whom, "--dry-run", "--json", "--", "--in the beginning").json["plan"]
            assert dashes[0]["request"]["EndpointName"] == "gpt-j"
            assert json.loads(dashes[0]["request"]["Body"])["inputs"] == "--in the beginning"

    def test_a_body_that_is_not_there(self) -> None:
        result = invoke("--body", "/nonexistent")
        assert result.code == 1
        assert result.err == "error: /nonexistent: No such file or directory\n"

    def test_prompts_and_bodies_from_stdin(self, endpoint: Runtime) -> None:
        endpoint.answer = always(Answer(200, (b'[{"generated_text": "a"}]',)))
        for arguments, sent in ((["-"], "żółw\n"), (["--body", "-"], '{"inputs": "żółw\\n"}')):
            process = subprocess.run(
                [*start_argv(), *arguments],
                input=sent,
                capture_output=True,
                text=True,
                check=True,
            )
            assert process.stdout == "a\n"
        assert [json.loads(one.body)["inputs"] for one in endpoint.asked] == ["żółw\n"] * 2

    @pytest.mark.parametrize(
        ("arguments", "operation"),
        [([], "invoke_endpoint"), (["--stream"], "invoke_endpoint_with_response_stream")],
    )
    def test_a_dry_run_shows_the_request_and_asks_nobody(self, arguments: list[str], operation: str) -> None:
        (shown,) = invoke("x", "--dry-run", "--json", *arguments).json["plan"]
        assert shown["operation"] == operation
        assert json.loads(shown["request"]["Body"])["inputs"] == "x"
        plan.validate(Action(**shown))
        assert "POST http://h:1/invocations" in invoke("http://h:1", "x", "--dry-run").out


def start_argv() -> list[str]:
    """The command's argv, for a process of its own."""
    import sys

    return [sys.executable, "-m", "gptj_serve.aws.invoke"]
