"""The image as SageMaker and other operators run it."""

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from gptj_serve import demo
from support.container import DEMO, FIND_ENGINE, LOCKED_DOWN, Container, model_mount
from support.server import Answer

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]


@contextlib.contextmanager
def in_flight(container: Container, num_tokens: int) -> Iterator["Future[Answer]"]:
    """A request that the engine is working on."""
    with ThreadPoolExecutor(1) as pool:
        before_s = container.engine_cpu_s()
        future = pool.submit(
            container.generate, "And", max_new_tokens=num_tokens, min_new_tokens=num_tokens, details=True
        )
        deadline_s = time.monotonic() + 20
        while container.engine_cpu_s() < before_s + 0.2:
            assert time.monotonic() < deadline_s
        assert not future.done()
        yield future


def test_ping_turns_true_when_the_model_is_ready(image: str) -> None:
    with contextlib.closing(Container(image, *DEMO)) as container:
        refused, ready_before_ping = 0, None
        deadline_s = time.monotonic() + 90
        while ready_before_ping is None and time.monotonic() < deadline_s:
            engine_was_ready = bool(container.events("engine_ready"))
            try:
                if container.get("/ping").status == 200:
                    ready_before_ping = engine_was_ready
            except OSError:
                refused += 1
        assert refused > 0
        assert ready_before_ping
        assert container.generate("In", max_new_tokens=1).status == 200


def test_every_schema_is_answered(container: Container) -> None:
    container.wait_for("ready")
    parameters = {"max_new_tokens": 8}
    prompt = "In the beginning"
    tgi = container.post(json.dumps({"inputs": prompt, "parameters": parameters}))
    assert (tgi.status, list(tgi.json[0])) == (200, ["generated_text"])
    guide = container.post(json.dumps({"inputs": {"text_inputs": prompt, "parameters": parameters}}))
    assert (guide.status, guide.json["status"]) == (200, 200)
    assert guide.json["response"][0]["generated_text"] == prompt + tgi.text
    plain = container.post(prompt, content_type="text/plain", Accept="text/plain")
    assert plain.status == 200
    assert plain.body.decode().startswith(tgi.text)


def test_it_says_what_runs_and_why(container: Container) -> None:
    container.wait_for("ready")
    (starting,) = container.events("starting")
    for name in ("gptj-serve", "python", "torch", "transformers", "deepspeed", "multi-model-server"):
        assert starting["versions"][name][0].isdigit()
    assert starting["driver"]["reason"]
    (chosen,) = container.events("engine_chosen")
    assert (chosen["engine"], chosen["reason"]) == ("hf", "auto: no NVIDIA GPU is visible")
    assert {"gpu", "driver", "cuda"} <= chosen.keys()


def test_fused_runs_on_a_cpu_when_it_is_asked_for(image: str) -> None:
    options = (*LOCKED_DOWN, *DEMO, "--env", "GPTJ_ENGINE=fused")
    with contextlib.closing(Container(image, *options)) as container:
        container.wait_for("ready")
        (chosen,) = container.events("engine_chosen")
        assert (chosen["engine"], chosen["gpu"]) == ("fused", None)
        assert chosen["reason"] == "GPTJ_ENGINE=fused: on the CPU, in plain PyTorch"
        assert container.generate("In the beginning", max_new_tokens=8).status == 200


def test_serve_is_process_1_and_nothing_runs_as_root(container: Container) -> None:
    container.wait_for("ready")
    code = (
        "import psutil; print(*psutil.Process(1).cmdline());"
        "print({one.uids().real for one in psutil.process_iter()})"
    )
    command, users = container.python(code).splitlines()
    assert command.split()[1:] == ["/usr/local/bin/serve", "serve"]
    assert users == "{0, 10001}"  # 0 is the process that looks


def test_the_health_check_agrees(container: Container) -> None:
    container.wait_for("ready")
    deadline_s = time.monotonic() + 30
    while container.state()["Health"]["Status"] != "healthy":
        assert time.monotonic() < deadline_s, container.state()["Health"]
        time.sleep(0.5)


def test_stop_answers_what_runs_and_ends_with_0(image: str) -> None:
    with contextlib.closing(Container(image, *LOCKED_DOWN, *DEMO)) as container:
        container.wait_for("ready")
        with in_flight(container, 400) as request:
            assert container.stop() < 30
            answer = request.result(timeout=10)
        assert answer.status == 200
        assert answer.json[0]["details"]["generated_tokens"] == 400
        assert container.exit_code() == 0


def test_stop_while_loading_ends_with_0(image: str) -> None:
    with contextlib.closing(Container(image, *DEMO)) as container:
        container.wait_for("starting")
        assert container.stop() < 10
        assert container.exit_code() == 0


def test_when_the_engine_is_killed_the_container_ends(image: str) -> None:
    with contextlib.closing(Container(image, *DEMO)) as container:
        container.wait_for("ready")
        with in_flight(container, 1500) as request:
            container.python(f"{FIND_ENGINE}; import os; os.kill(engine, 9)")
            answer = request.result(timeout=10)
        assert (answer.status, answer.json["error_type"]) == (503, "unavailable")
        assert container.wait_for_exit(15) == 70


def test_a_broken_model_is_said_in_the_log(image: str, tmp_path: Path) -> None:
    shutil.copytree(demo.MODEL_DIR, tmp_path / "model")
    (tmp_path / "model" / "config.json").unlink()
    with contextlib.closing(Container(image, *model_mount(tmp_path / "model"))) as container:
        assert container.wait_for_exit(30) == 1
        (event,) = container.events("not_started")
        assert "/opt/ml/model" in event["message"]
        assert "config.json" in event["message"]
        assert "Traceback" not in container.log


@pytest.mark.parametrize(
    ("options", "command", "says"),
    [
        ((*DEMO, "--env", "GPTJ_ENGINE=deepspeed"), "serve", "no NVIDIA GPU is visible"),
        ((*DEMO, "--env", "GPTJ_ENGINES=hf"), "serve", "did you mean GPTJ_ENGINE?"),
        (DEMO, "train", "'train': the only command here is 'serve'"),
        ((), "serve", "/opt/ml/model"),
    ],
)
def test_what_cannot_be_is_one_line_and_an_exit_code(
    image: str, options: tuple[str, ...], command: str, says: str
) -> None:
    with contextlib.closing(Container(image, *options, command=command)) as container:
        assert container.wait_for_exit(30) == 1
        (event,) = container.events("not_started")
        assert says in event["message"]
        assert "Traceback" not in container.log


def test_settings_and_limits_of_the_environment_are_kept(image: str) -> None:
    options = ("--env", "SAGEMAKER_BIND_TO_PORT=9090", "--env", "GPTJ_MAX_CONTEXT=64")
    limits = ("--cpus", "1", "--memory", "1500m", "--pids-limit", "512")
    with contextlib.closing(Container(image, *options, *limits, *DEMO, port_inside=9090)) as container:
        container.wait_for("ready")
        assert container.events("engine_chosen")[0]["threads"] == 1
        assert container.generate("In", max_new_tokens=8).status == 200
        too_long = container.generate("In", max_new_tokens=100)
        assert too_long.status == 400
        assert "64" in too_long.json["error"]


def test_the_http_front_streams_there_too(image: str) -> None:
    options = (*LOCKED_DOWN, *DEMO, "--env", "GPTJ_FRONT=http")
    with contextlib.closing(Container(image, *options)) as container:
        container.wait_for("ready")
        document = {"inputs": "In", "parameters": {"max_new_tokens": 4, "min_new_tokens": 4}, "stream": True}
        answer = container.post(json.dumps(document))
        assert answer.status == 200
        assert answer.body.count(b"data: ") == 4
        assert container.get("/metrics").status == 200
        assert container.stop() < 30
        assert container.exit_code() == 0
