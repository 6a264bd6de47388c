"""Other projects' clients, unmodified, ask a service of the demo model as their documentation shows.

``scripts/test-clients`` makes the environments that they run in; docs/api.md says which versions these are.
What each client does is in ``programs``: it prints what it saw.
"""

import dataclasses
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gptj_serve import demo
from support.aws import sagemaker_runtime
from support.server import ROOT, Server, serving

PROGRAMS = Path(__file__).parent / "programs"
TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"
SENT_ALONG = "sagemaker_base_url"
"""LiteLLM sends its own setting of the runtime's address along, where it is not AWS's."""

pytestmark = [pytest.mark.outside, pytest.mark.timeout(300)]


@dataclass(frozen=True)
class Service:
    """The running service.

    Attributes:
        server: Itself.
        runtime: URL of SageMaker's runtime in front of it.
        text: The greedy 12 tokens after "The king".
        said: The greedy 8 tokens that answer "Who is the king?".
    """

    server: Server
    runtime: str
    text: str
    said: str

    @property
    def stopped(self) -> str:
        """The text before the stop string of the programs, which is in the middle of a word."""
        before, found, _ = self.text.partition("lon")
        assert found
        return before

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    def ask(self, environment: str, program: str) -> dict[str, Any]:
        """What a program saw.

        Args:
            environment: Its environment, as ``scripts/test-clients`` calls it.
            program: Its name in ``programs``, without ``ask_``.
        """
        env = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "eu-west-1"}
        env |= {"HF_HUB_DISABLE_TELEMETRY": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        command = [venv(environment) / "bin/python", PROGRAMS / f"ask_{program}.py", self.url, self.runtime]
        seen = json.loads(run(command, env).splitlines()[-1])
        assert isinstance(seen, dict)
        check_versions(seen.pop("versions"))
        return seen

    def measured_by(self, name: str, arguments: list[Any], out: Path) -> Any:
        """The JSON document that a load generator writes.

        Args:
            name: Its command, and what its environment is called.
            arguments: All that it is given.
            out: Where it writes the document.
        """
        bin_dir = venv(name.upper()) / "bin"
        ask = ["-c", f"from importlib.metadata import version; print(version('{name}'))"]
        check_versions({name: run([bin_dir / "python", *ask], {}).strip()})
        run([bin_dir / name, *arguments], {"HF_HUB_DISABLE_TELEMETRY": "1"}, cwd=out.parent)
        return json.loads(out.read_text())


def run(command: list[Any], env: dict[str, str], cwd: Path | None = None) -> str:
    """What a program prints.

    Raises:
        AssertionError: It failed.
    """
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(
        command, env=clean | env, cwd=cwd, capture_output=True, text=True, timeout=200, check=False
    )
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-3000:]
    return ran.stdout


def venv(environment: str) -> Path:
    """An environment of clients."""
    given = os.environ.get(f"CLIENTS_{environment}")
    if given is None:
        pytest.skip(f"CLIENTS_{environment} names no environment; scripts/test-clients makes one")
    return Path(given)


def check_versions(used: dict[str, str]) -> None:
    """docs/api.md tells these versions.

    Raises:
        AssertionError: It tells others, or none.
    """
    _, _, table = (ROOT / "docs/api.md").read_text().partition("\n## Clients\n")
    told = set(re.findall(r"([a-z0-9-]+) (\d+\.\d+\.\d+)", table.partition("\n## ")[0]))
    assert used.items() <= told


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    model_dir = tmp_path_factory.mktemp("model") / "demo"
    shutil.copytree(demo.MODEL_DIR, model_dir)
    (model_dir / "chat_template.jinja").write_text(TEMPLATE)
    env = {"GPTJ_FRONT": "http", "GPTJ_ENGINE": "fused", "GPTJ_MAX_BATCH_SIZE": "4"}
    with (
        serving(**env, GPTJ_MODEL_DIR=str(model_dir)) as server,
        sagemaker_runtime.running(passing_on(server.port)) as before,
    ):
        text = server.generate("The king", max_new_tokens=12).text
        said = server.generate("user: Who is the king?\nassistant:", max_new_tokens=8).text
        yield Service(server, before.url, text, said)


def passing_on(port: int) -> sagemaker_runtime.Answers:
    """SageMaker's runtime, without what LiteLLM sends to it because it is not at AWS."""
    answer = sagemaker_runtime.passing_on(port)

    def cleaned(asked: sagemaker_runtime.Asked) -> sagemaker_runtime.Answer:
        if SENT_ALONG.encode() not in asked.body:
            return answer(asked)
        document = json.loads(asked.body)
        for where in (document, document.get("parameters", {})):
            where.pop(SENT_ALONG, None)
        return answer(dataclasses.replace(asked, body=json.dumps(document).encode()))

    return cleaned


def test_openai(service: Service) -> None:
    seen = service.ask("OPENAI", "openai")
    assert {seen["whole"], seen["stream"], *seen["at_once"]} == {service.text}
    assert (seen["stream_usage"], len(seen["at_once"])) == (12, 6)
    assert seen["stopped"] == {"text": service.stopped, "finish_reason": "stop"}
    assert (seen["many"], seen["many_usage"]) == ([*range(80)], 240)
    assert seen["chat"] == seen["chat_stream"] == service.said
    assert seen["models"] == ["gpt-j"]
    assert seen["too_long"] == seen["too_long_chat"] == ["BadRequestError", 400, "context_length_exceeded"]
    assert seen["tools"][:2] == ["BadRequestError", 400]
    assert seen["embeddings"][:2] == ["NotFoundError", 404]


def test_huggingface_hub(service: Service) -> None:
    seen = service.ask("OPENAI", "huggingface_hub")
    assert seen["whole"] == seen["stream"] == service.text
    assert seen["last"] == [service.text, "length", 12]
    assert seen["stopped"] == [service.stopped, "stop_sequence"]
    assert len(set(seen["warm"])) > 1
    assert seen["chat"] == seen["chat_stream"] == service.said
    assert seen["too_long"] == seen["too_long_stream"] is True


def test_text_generation(service: Service) -> None:
    seen = service.ask("TGI", "text_generation")
    assert {seen["whole"], seen["stream"], *seen["at_once"]} == {service.text}
    assert (seen["reason"], seen["last"], seen["others"]) == ("length", [6, 2], 1)
    assert seen["stopped"] == [service.stopped, "stop_sequence"]
    assert len(set(seen["warm"])) > 1
    assert (seen["too_long"], seen["too_long_stream"]) == (True, True)


def test_langchain_huggingface(service: Service) -> None:
    seen = service.ask("TGI", "langchain_huggingface")
    assert seen["whole"] == seen["stream"] == service.text
    assert seen["many"] == 20 * [service.text]
    assert seen["stopped"] == service.stopped
    assert seen["too_long"] is True


def test_langchain_openai(service: Service) -> None:
    seen = service.ask("OPENAI", "langchain_openai")
    assert seen["whole"] == seen["stream"] == service.text
    assert seen["many"] == 20 * [4]
    assert seen["stopped"] == service.stopped
    assert seen["chat"] == seen["chat_stream"] == service.said
    assert seen["too_long"] == seen["too_long_chat"] == "context_length_exceeded"


def test_llama_index(service: Service) -> None:
    seen = service.ask("LLAMA_INDEX", "llama_index")
    assert seen["whole"] == seen["stream"] == service.text
    assert seen["stopped"] == service.stopped
    assert seen["chat"] == seen["chat_stream"] == service.said
    assert seen["too_long"] == "context_length_exceeded"


def test_litellm(service: Service) -> None:
    seen = service.ask("OPENAI", "litellm")
    assert seen["whole"] == seen["stream"] == seen["same_as_openai"] == service.text
    assert (seen["stopped"], seen["many"]) == (service.stopped, 80)
    assert seen["chat"] == seen["chat_stream"] == service.said
    assert seen["too_long"] == seen["too_long_chat"] == 400


def test_litellm_through_sagemaker(service: Service) -> None:
    seen = service.ask("OPENAI", "litellm_sagemaker")
    assert seen["whole"] == service.text
    assert seen["stream"] == service.text.removeprefix(" ")  # LiteLLM drops that
    assert seen["stopped"] == service.stopped
    assert seen["several"]
    assert seen["chat"] == seen["chat_stream"] == service.said
    # LiteLLM tells no more of a whole answer's error than AWS's status
    assert (seen["too_long"], seen["too_long_stream"]) == (
        ["ServiceUnavailableError", False],
        ["BadRequestError", True],
    )


def test_boto3(service: Service) -> None:
    seen = service.ask("OPENAI", "boto3")
    assert {seen[name] for name in ("whole", "stream", "openai", "openai_stream")} == {service.text}
    assert seen["guide"] == {"response": [{"generated_text": f"The king{service.text}"}], "status": 200}
    assert seen["plain"].startswith(service.text)
    assert seen["stopped"] == [{"generated_text": service.stopped}]
    assert (seen["many"], seen["chat"]) == (20 * [4], service.said)
    assert seen["too_long"] == [400, "validation"]


def test_langchain_aws(service: Service) -> None:
    seen = service.ask("OPENAI", "langchain_aws")
    assert seen["whole"] == seen["stream"] == service.text
    assert seen["many"] == 20 * [service.text]
    assert seen["too_long"] == 400


def test_guidellm(service: Service, tmp_path: Path) -> None:
    out = tmp_path / "guidellm.json"
    arguments = ["run", "--disable-console", "--output", f"kind=json,path={out}"]
    arguments += ["--backend", f"kind=openai_http,target={service.url}"]  # whose default is to chat
    arguments += ["--profile", "kind=concurrent,streams=2", "--constraint", "kind=max_requests,count=4"]
    arguments += ["--tokenizer", f"kind=huggingface_auto,model={demo.MODEL_DIR}"]
    arguments += ["--data", "kind=synthetic_text,prompt_tokens=30,output_tokens=8"]
    (benchmark,) = service.measured_by("guidellm", arguments, out)["benchmarks"]
    requests = benchmark["requests"]
    assert requests["errored"] == []
    assert [request["output_tokens"] for request in requests["successful"]] == [8] * 4


@pytest.mark.parametrize("endpoint", ["chat", "completions", "huggingface_generate"])
def test_aiperf(service: Service, tmp_path: Path, endpoint: str) -> None:
    arguments = ["profile", "--model", "gpt-j", "--url", service.url, "--endpoint-type", endpoint]
    arguments += ["--streaming", "--tokenizer", str(demo.MODEL_DIR), "--ui", "simple"]
    arguments += ["--request-count", "4", "--concurrency", "2"]
    arguments += ["--synthetic-input-tokens-mean", "30", "--output-tokens-mean", "8"]
    arguments += ["--artifact-dir", str(tmp_path)]
    told = service.measured_by("aiperf", arguments, tmp_path / "profile_export_aiperf.json")
    assert (told["request_count"]["avg"], told["error_summary"]) == (4, [])
    assert told["output_sequence_length"]["max"] == 8
