"""The service from outside: start ``serve``, talk HTTP, read its log."""

import contextlib
import json
import os
import random
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoTokenizer, GPTJForCausalLM

from gptj_serve import demo
from gptj_serve.benchmark.facts.phases import phases
from gptj_serve.request import EngineStats
from support.server import Answer, Server, until

PROMPTS = ["In the beginning", "And he said unto them,", "A hacker is", "The king"]
BIG = 6 * 1024 * 1024


@pytest.fixture(scope="module")
def reference() -> Any:
    """Transformers' own greedy continuation of a prompt, with the same weights."""
    model = GPTJForCausalLM.from_pretrained(demo.MODEL_DIR, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(demo.MODEL_DIR)

    def continue_(prompt: str, num_new: int, **options: Any) -> tuple[list[int], str]:
        ids_1T = tokenizer(prompt, return_tensors="pt").input_ids
        out_1T = model.generate(
            ids_1T, attention_mask=torch.ones_like(ids_1T), max_new_tokens=num_new, do_sample=False, **options
        )
        new_ids = out_1T[0, ids_1T.shape[1] :].tolist()
        return new_ids, tokenizer.decode(new_ids, skip_special_tokens=True)

    return continue_


def test_ping(server: Server) -> None:
    assert server.get("/ping").status == 200


@pytest.mark.parametrize("name", ["GPTJ_PORT", "SAGEMAKER_BIND_TO_PORT"])
def test_the_images_health_check(server: Server, name: str) -> None:
    command, env = [sys.executable, "-m", "gptj_serve.health"], {**os.environ, name: str(server.port)}
    ran = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "/ping answers 200\n", "")


def test_no_client_keeps_a_request_out_of_the_log(server: Server) -> None:
    """The name of the private directory is for everybody to list."""
    command = server.engine().cmdline()
    name = Path(command[command.index("--socket") + 1]).parent.name
    answer = server.post('{"inputs": ""}', **{"x-serve-warm-up": name})
    assert answer.status == 400
    until(lambda: answer.json["request_id"] in {line.get("request_id") for line in server.records()})


def test_the_warm_up_is_no_request(server: Server) -> None:
    """Whoever watches for 400s would look for a client that was none."""
    (ready,) = server.events("ready")
    asked = [line for line in server.records() if line.get("message") == "request"]
    assert [line for line in asked if line["time"] <= ready["time"]] == []


def test_the_phases_of_the_start_come_in_order(server: Server) -> None:
    found = phases(server.lines)
    names = ["starting", "engine_chosen", "model_loaded", "engine_ready", "ready"]
    assert [name for name in found if name in names] == names
    seconds = [found[name] for name in names]
    assert seconds == sorted(seconds)
    total_s = server.events("ready")[0]["seconds"]
    assert 0 <= seconds[0] < seconds[-1] <= total_s + 1
    parts = found["parts"]
    assert list(parts) == ["imports", "kernels", "load", "warm_up", "front", "other"]
    assert sum(parts.values()) == pytest.approx(total_s, abs=0.01)
    assert parts["imports"] == pytest.approx(sum(event["seconds"] for event in server.events("imported")))
    assert all(parts[name] > 0 for name in parts if name != "kernels")  # nothing is compiled here
    assert {"read", "upload"} <= found["loading"].keys() or {"reader_read", "upload"} <= found[
        "loading"
    ].keys()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_is_that_of_transformers(server: Server, reference: Any, prompt: str) -> None:
    answer = server.generate(prompt, max_new_tokens=24, details=True)
    ids, text = reference(prompt, 24)
    assert answer.text == text
    details = answer.json[0]["details"]
    assert [token["id"] for token in details["tokens"]] == ids
    assert details["generated_tokens"] == len(ids)
    assert details["finish_reason"] in ("length", "eos_token")


@pytest.mark.parametrize(
    "options",
    [
        {"no_repeat_ngram_size": 2},
        {"suppress_tokens": [262, 11], "begin_suppress_tokens": [13], "repetition_penalty": 1.2},
        {"eos_token_id": [12, 13], "min_length": 16},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_changes_greedy_text_changes_it_as_in_transformers(
    server: Server, reference: Any, options: dict[str, Any]
) -> None:
    prompt = PROMPTS[1]
    ids, text = reference(prompt, 24, **options)
    plain_ids, _ = reference(prompt, 24)
    assert ids != plain_ids
    answer = server.generate(prompt, max_new_tokens=24, details=True, **options)
    assert [token["id"] for token in answer.json[0]["details"]["tokens"]] == ids
    # its last one ends the text, and is no text here
    assert text.startswith(answer.text)


def test_bad_words_are_not_said(server: Server, reference: Any) -> None:
    ids, text = reference(PROMPTS[0], 24)
    word = max(text.split(), key=len)
    said = server.generate(PROMPTS[0], max_new_tokens=24, bad_words=[word]).text
    assert word not in said.split()
    words = [ids[2:4], ids[6:9], ids[12:13]]
    assert (
        server.generate(PROMPTS[0], max_new_tokens=24, bad_words_ids=words).text
        == (reference(PROMPTS[0], 24, bad_words_ids=words)[1])
    )


def test_a_batch_gives_each_its_own_answer_in_order(server: Server) -> None:
    alone = [server.generate(prompt, max_new_tokens=12).text for prompt in PROMPTS]
    together = server.generate(PROMPTS, max_new_tokens=12)
    assert [one["generated_text"] for one in together.json] == alone


def test_sampling_with_a_seed_does_not_depend_on_what_else_runs(server: Server) -> None:
    options = {"max_new_tokens": 16, "do_sample": True, "temperature": 0.9, "seed": 7}
    alone = server.generate(PROMPTS[0], **options).text
    with ThreadPoolExecutor(8) as pool:
        others = [pool.submit(server.generate, prompt, max_new_tokens=30) for prompt in PROMPTS * 2]
        again = [pool.submit(server.generate, PROMPTS[0], **options) for _ in range(4)]
        assert {future.result().text for future in again} == {alone}
        assert {future.result().status for future in others} == {200}
    assert server.generate(PROMPTS[0], **{**options, "seed": 8}).text != alone


FIRST = {"max_new_tokens": 300, "min_new_tokens": 300}


def beside_a_first(
    server: Server, prompts: list[str], length: int, is_so: Callable[[EngineStats], bool]
) -> tuple[list[Answer], int]:
    """Ask while a first request runs, until the engine has said so; the answers and the steps of all."""
    parameters = {"max_new_tokens": length, "min_new_tokens": length}
    for _ in range(5):  # if this process is held up, the first one may have ended before the others come
        before = server.settle()
        with ThreadPoolExecutor(1 + len(prompts)) as pool:
            first = pool.submit(server.generate, "In the", **FIRST)
            until(lambda: server.figures().num_running or first.done())  # noqa: B023
            others = [pool.submit(server.generate, prompt, **parameters) for prompt in prompts]
            is_seen = False
            while not (is_seen or first.done()):
                is_seen = is_so(server.figures())
            assert first.result().status == 200
        if is_seen:
            return [other.result() for other in others], server.settle().num_steps - before.num_steps
    raise AssertionError("never seen")


def test_requests_that_wait_together_share_a_batch(shared: Callable[[str], Server]) -> None:
    server = shared("http-static")
    prompts = [f"And {name}" for name in ("Abraham", "Isaac", "Jacob", "Joseph")]
    alone = [server.generate(prompt, max_new_tokens=60, min_new_tokens=60).text for prompt in prompts]
    answers, num_steps = beside_a_first(
        server, prompts, 60, lambda now: (now.num_running, now.num_waiting) == (1, 4)
    )
    assert [answer.text for answer in answers] == alone
    assert num_steps == FIRST["max_new_tokens"] + 60
    for answer in answers:
        line = _wait_for_line(server, answer.headers["x-request-id"])
        assert 0 < line["queue_s"] < line["total_s"]


def test_requests_join_what_runs(shared: Callable[[str], Server]) -> None:
    server = shared("http-continuous")
    prompts = [f"And {name}" for name in ("Abraham", "Isaac", "Jacob")]
    alone = [server.generate(prompt, max_new_tokens=100, min_new_tokens=100).text for prompt in prompts]
    answers, _ = beside_a_first(server, prompts, 100, lambda now: now.num_running == 4)
    assert [answer.text for answer in answers] == alone


def test_the_first_guides_schema(server: Server) -> None:
    body = {
        "inputs": {
            "text_inputs": PROMPTS[0],
            "parameters": {"max_new_tokens": 8, "min_tokens": 2, "top_p": 9},
        }
    }
    answer = server.post(json.dumps(body))
    assert answer.status == 200
    assert answer.json["status"] == 200
    expected = PROMPTS[0] + server.generate(PROMPTS[0], max_new_tokens=8).text
    assert answer.json["response"] == [{"generated_text": expected}]


def test_plain_text_in_and_out(server: Server) -> None:
    answer = server.post(PROMPTS[0], "text/plain")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.body.decode()


def test_a_stop_string_ends_the_text_before_it(server: Server) -> None:
    whole = server.generate(PROMPTS[1], max_new_tokens=20).text
    stop = whole[len(whole) // 2 : len(whole) // 2 + 5]
    answer = server.generate(PROMPTS[1], max_new_tokens=20, stop=[stop], details=True)
    assert answer.text == whole[: whole.index(stop)]
    assert answer.json[0]["details"]["finish_reason"] == "stop_sequence"


def test_a_stop_string_that_is_a_special_token(server: Server) -> None:
    """A bias makes every token the end of text, which is ignored: without the stop string there are 9."""
    document = {"prompt": "The king", "max_tokens": 9, "temperature": 0, "logit_bias": {"0": 100}}
    answer = server.post(json.dumps(document | {"ignore_eos": True, "stop": "<|endoftext|>"})).json
    assert answer["choices"][0]["text"] == ""
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == 1
    shown = {"ignore_eos": True, "skip_special_tokens": False, "max_tokens": 2}
    answer = server.post(json.dumps(document | shown)).json
    assert answer["choices"][0]["text"] == 2 * "<|endoftext|>"


BAD_REQUESTS = [
    (b'{"inputs": "a", "parameters": {"top_p": 1.5}}', "application/json", 400, "top_p"),
    (b'{"inputs": "a", "parameters": {"max_new_token": 5}}', "application/json", 400, "max_new_tokens"),
    (b'{"inputs": "a", "parameters": {"num_beams": 4}}', "application/json", 400, "num_beams"),
    (b'{"inputs": "a", "stream": true}', "application/json", 400, "stream"),
    (b'{"inputs": "a", "parameters": {"max_new_tokens": 5000}}', "application/json", 400, "2048"),
    (b'{"inputs": "a"', "application/json", 400, ""),
    (b"", "application/json", 400, ""),
    (b"\xff\xfe\x00garbage", "application/json", 400, "UTF-8"),
    (b"[" * 200_000, "application/json", 400, ""),
    (b'{"inputs": ' + b"[" * 100_000, "application/json", 400, ""),
    (bytes(range(256)) * 8192, "application/json", 400, ""),
    (b'{"inputs": ["good", ""]}', "application/json", 400, "inputs[1]"),
    (b"inputs=a", "application/x-www-form-urlencoded", 415, "application/json"),
    (b"inputs", "image/png", 415, "application/json"),
    (b'{"inputs": "' + b"a" * BIG + b'"}', "application/json", 413, ""),
]


@pytest.mark.parametrize(("body", "content_type", "status", "says"), BAD_REQUESTS)
def test_a_bad_request_gets_an_error_and_the_next_good_one_works(
    server: Server, body: bytes, content_type: str, status: int, says: str
) -> None:
    if says == "stream" and server.front == "http":
        pytest.skip("this front streams")
    answer = server.post(body, content_type)
    assert answer.status == status, answer.body[:500]
    assert set(answer.json) == {"error", "error_type", "request_id"}
    assert says in answer.json["error"]
    assert answer.json["request_id"] == answer.headers["x-request-id"]
    assert b"Traceback" not in answer.body
    assert server.generate("In", max_new_tokens=1).status == 200


def test_a_bad_neighbour_touches_nobody(server: Server) -> None:
    alone = server.generate(PROMPTS[0], max_new_tokens=20).text
    bad = [case[:2] for case in BAD_REQUESTS if case[3] != "stream"]
    with ThreadPoolExecutor(8) as pool:
        good = [pool.submit(server.generate, PROMPTS[0], max_new_tokens=20) for _ in range(8)]
        errors = [pool.submit(server.post, *case) for case in bad]
        assert {future.result().text for future in good} == {alone}
        assert {future.result().status for future in errors} == {400, 413, 415}


def test_a_body_far_beyond_the_limit_is_refused(server: Server) -> None:
    with contextlib.suppress(ConnectionError):  # it may hang up before it has read it all
        assert server.post(b"a" * (5 * BIG)).status == 413
    assert server.get("/ping").status == 200


def test_a_prompt_of_megabytes_of_which_little_is_kept_costs_no_memory(server: Server) -> None:
    dice, engine = random.Random(1), server.engine()

    def ask(alphabet: str) -> Answer:
        prompt = "".join(dice.choices(alphabet, k=100_000)) * 62
        return server.generate(prompt, truncate=2, max_new_tokens=1)

    def resident_mib() -> float:
        fronts = [process for process in server.descendants() if process != engine]
        return sum(process.memory_info().rss for process in fronts) / (1 << 20)

    ask(" a")  # buffers for one are kept
    before = resident_mib()
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, ["abcde    ", "abcdefghij"] * 4))
    assert [answer.status for answer in answers] == [200, 400] * 4
    assert all("a word of more than 65536" in answer.json["error"] for answer in answers[1::2])
    # a worker keeps the 6 MB of its last one; 700 MB each were kept when all of it was tokenised
    assert resident_mib() - before < 250


def test_a_client_that_goes_away_harms_nobody(server: Server) -> None:
    body = json.dumps({"inputs": "And", "parameters": {"max_new_tokens": 300}})
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        head = "POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json"
        client.sendall(f"{head}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
    assert server.generate(PROMPTS[0], max_new_tokens=4).status == 200


def test_only_the_one_port_is_open(server: Server) -> None:
    # Java's IPv4 sockets are IPv6 ones
    listening = {
        (connection.laddr.ip.removeprefix("::ffff:"), connection.laddr.port)
        for process in [psutil.Process(server.process.pid), *server.descendants()]
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {("127.0.0.1", server.port)}


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/models"), ("POST", "/models?url=x"), ("GET", "/models/model")]
)
def test_the_management_api_does_not_answer(server: Server, method: str, path: str) -> None:
    answer = server.get(path, method)
    assert answer.status in (404, 405)
    assert b"modelName" not in answer.body


def test_the_log_is_json_and_tells_times_and_counts_but_no_prompt(server: Server) -> None:
    secret = "Nebuchadnezzar the wombat"
    answer = server.generate(secret, max_new_tokens=5, stop=["zyzzyva"])
    assert answer.status == 200
    server.generate(secret, top_p=secret)
    # the model server takes forms and query strings apart itself, and quotes what it cannot read
    server.post(f"100% {secret}%zz", "application/x-www-form-urlencoded")
    server.get("/invocations?q=wombat%zz", "POST")
    request_id = answer.headers["x-request-id"]
    found = _wait_for_line(server, request_id)
    assert found["status"] == 200
    assert found["prompt_tokens"] > 4
    assert found["generated_tokens"] == 5
    assert 0 <= found["queue_s"] <= found["first_token_s"] <= found["total_s"] < 60
    for line in list(server.lines):
        json.loads(line)
    assert not re.search("wombat|zyzzyva", server.log)
    assert answer.text.strip()[:10] not in server.log


def _wait_for_line(server: Server, request_id: str) -> Any:
    def lines() -> list[str]:
        return [line for line in list(server.lines) if request_id in line]

    until(lines)
    return json.loads(lines()[0])
