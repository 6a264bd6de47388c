"""Bodies that are much work: nobody else waits for them, and what they took comes back."""

import json
import random
import time

from attacks.attack import BOTH, Attack, attack
from attacks.protocol import post
from attacks.target import Target

ATTACKS: list[Attack] = []
NUM_ABANDONED = 12
JSON_TYPE = {"Content-Type": "application/json"}


def long_text(alphabet: str) -> str:
    """Six megabytes of random letters."""
    return "".join(random.Random(1).choices(alphabet, k=100_000)) * 61


NESTED = json.dumps({"prompt": [[7]] * 800_000}).encode()
"""More than a million objects, refused when all have been read."""


@attack(ATTACKS, fronts=BOTH)
def truncated_megabytes(target: Target) -> None:
    """Of six megabytes two tokens are kept: no more is tokenised; one word of that length is refused."""
    with target.holding(400):
        for alphabet, right in (("abcdefgh ", 200), ("abcdefgh", 400)):
            reply = target.generate(long_text(alphabet), truncate=2, max_new_tokens=1)
            assert reply.status in (right, 429, 504), reply


@attack(ATTACKS)
def abandoned_bodies(target: Target) -> None:
    """Large bodies whose clients have gone cost no honest request its time."""
    for _ in range(NUM_ABANDONED):
        with target.connected(post(NESTED)):
            pass
    started_s = time.monotonic()
    assert target.generate("The king", max_new_tokens=1).status in (200, 429)
    assert time.monotonic() < started_s + 10


@attack(ATTACKS)
def nested_prompts(target: Target) -> None:
    """Many small prompts are refused, and nobody else waits meanwhile."""
    with target.connected(post(NESTED)):
        assert max(target.ping_s() for _ in range(20)) < 1
    reply = target.ask("POST", "/invocations", NESTED, JSON_TYPE)
    assert reply.status in (400, 429, 504), reply
