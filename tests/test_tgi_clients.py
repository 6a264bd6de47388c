"""Clients written for TGI, unmodified, with the service's address alone.

python -m venv /tmp/clients
/tmp/clients/bin/pip install text-generation langchain-huggingface
TGI_CLIENTS=/tmp/clients/bin/python scripts/test -m outside tests/test_tgi_clients.py
"""

import json
import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from harness import Server, serving

CLIENTS = os.environ.get("TGI_CLIENTS")

TEXT_GENERATION = """
from text_generation import Client
client = Client(base, timeout=60)
whole = client.generate("The king", max_new_tokens=12)
best = client.generate("The king", max_new_tokens=4, best_of=2, temperature=0.9)
warm = {client.generate("The king", max_new_tokens=12, temperature=2.0).generated_text for _ in range(4)}
stream = [event.token.text for event in client.generate_stream("The king", max_new_tokens=12)]
*_, last = client.generate_stream("In the beginning", max_new_tokens=6, top_n_tokens=2)
try:
    client.generate("The king", max_new_tokens=99999)
except Exception as error:
    refused = type(error).__name__
told = {
    "whole": whole.generated_text, "reason": whole.details.finish_reason.value, "stream": "".join(stream),
    "others": len(best.details.best_of_sequences), "warm": len(warm), "refused": refused,
    "last": [last.details.generated_tokens, len(last.top_tokens)],
}
"""

LANGCHAIN = """
from langchain_huggingface import HuggingFaceEndpoint
model = HuggingFaceEndpoint(endpoint_url=base, max_new_tokens=12, temperature=1e-10)
told = {
    "whole": model.invoke("The king"), "stream": "".join(model.stream("The king")),
    "stopped": model.invoke("The king", stop=[" "]),
}
"""


pytestmark = [
    pytest.mark.outside,
    pytest.mark.timeout(300),
    pytest.mark.skipif(CLIENTS is None, reason="TGI_CLIENTS names no Python that has the clients"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(GPTJ_FRONT="http", GPTJ_ENGINE="fused", GPTJ_MAX_BATCH_SIZE="4") as running:
        yield running


def ask(server: Server, script: str) -> Any:
    """What a script that is given the service's address makes of it."""
    assert CLIENTS is not None
    program = f"base = 'http://127.0.0.1:{server.port}'\n{script}\nimport json; print(json.dumps(told))"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.run(
        [CLIENTS, "-c", program],
        env=env | {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "0"},
        capture_output=True,
        timeout=200,
        check=False,
    )
    assert found.returncode == 0, found.stderr.decode()
    return json.loads(found.stdout.splitlines()[-1])


def test_text_generation(server: Server) -> None:
    told = ask(server, TEXT_GENERATION)
    text = server.generate("The king", max_new_tokens=12).text
    assert (told["whole"], told["stream"], told["reason"]) == (text, text, "length")
    assert (told["others"], told["refused"], told["last"]) == (1, "ValidationError", [6, 2])
    assert told["warm"] > 1


def test_langchains_endpoint(server: Server) -> None:
    told = ask(server, LANGCHAIN)
    text = server.generate("The king", max_new_tokens=12).text
    assert told["whole"] == told["stream"] == text
    assert told["stopped"] == ""
