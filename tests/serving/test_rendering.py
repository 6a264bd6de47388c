"""Answers so large that writing them down would hold up every stream."""

import asyncio
import json
import time

from gptj_serve.serving.call import Call
from gptj_serve.serving.http.generate import rendered
from gptj_serve.serving.service import Result, Service
from support.server import least
from support.serving_fakes import FakeClient, model_info, tokenizer

NUM_PROMPTS, NUM_TOKENS = 64, 200


def large_answer() -> tuple[Service, Call, Result]:
    """64 choices of 200 tokens, each with the five likeliest."""
    ids = tokenizer().encode(" cat sat on the mat.") * NUM_TOKENS
    client = FakeClient(lambda _: ids[:NUM_TOKENS], model_info(max_context=400, max_batch_size=64))
    service = Service(client, tokenizer(), 1 << 20, 30.0, streaming=True)
    asked = {"prompt": ["The cat"] * NUM_PROMPTS, "max_tokens": NUM_TOKENS, "logprobs": 5}
    call = service.parse(json.dumps(asked).encode(), "application/json")
    return service, call, service.run(call, "large")


def longest_block_s(service: Service, call: Call, result: Result) -> float:
    """The longest time for which the event loop did nothing else while the answer was rendered."""

    async def measure() -> float:
        rendering = asyncio.create_task(rendered(service, call, result))
        longest_s, before_s = 0.0, time.perf_counter()
        while not rendering.done():
            await asyncio.sleep(0)
            now_s = time.perf_counter()
            longest_s, before_s = max(longest_s, now_s - before_s), now_s
        return longest_s

    return asyncio.run(measure())


def test_streams_go_on_while_a_large_answer_is_written() -> None:
    service, call, result = large_answer()
    assert sum(len(answer.tokens) for answer in result.answers) == NUM_PROMPTS * NUM_TOKENS
    started_s = time.perf_counter()
    body, _ = service.render(call, result)
    whole_s = time.perf_counter() - started_s
    assert len(json.loads(body)["choices"]) == NUM_PROMPTS
    enough_s = whole_s / 4
    assert least(lambda: longest_block_s(service, call, result), enough_s) < enough_s
