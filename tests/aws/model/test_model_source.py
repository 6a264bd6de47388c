"""A model of the Hugging Face Hub: only what is needed is fetched, and every refusal says what to do."""

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants, file_download

from gptj_serve import demo
from gptj_serve.aws.common.clients import Aws
from gptj_serve.aws.common.errors import UsageError
from gptj_serve.aws.common.s3 import S3Url
from gptj_serve.aws.model import manifest, source
from gptj_serve.models import remedies
from support import tiny_model as tiny
from support.aws import fake_hub as fake
from support.aws.fake_hub import Hub
from support.aws.run_commands import NOWHERE, Result, call, command, finish, start
from support.server import WAIT_TIMEOUT_S

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub whose model is a pickle, among much that is not needed."""
    directory = tiny.write_model(tmp_path / "hub", files="pickle", dtype=torch.float16)
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    files |= {name: (demo.MODEL_DIR / name).read_bytes() for name in TOKENIZER}
    unneeded = {"README.md": b"# Tiny", "flax_model.msgpack": b"x" * 1000, ".gitattributes": b""}
    with fake.running(files | unneeded) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        configure(monkeypatch, ENDPOINT=running.url, HF_HUB_CACHE=str(tmp_path / "home/hub"))
        configure(monkeypatch, HF_TOKEN_PATH=str(tmp_path / "home/token"))
        yield running


def configure(monkeypatch: pytest.MonkeyPatch, **settings: object) -> None:
    """Set what the hub's client has read from the environment when it was imported."""
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    template = f"{constants.ENDPOINT}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


ARGUMENTS = ("org/tiny-j", "--revision", "float16")


def upload(*arguments: str) -> Result:
    """Upload the hub's model."""
    return call("upload_model", *ARGUMENTS, *arguments)


def fetched(hub: Hub) -> set[str]:
    """Names of the files that were asked for."""
    return {name for name, _ in hub.fetched}


def test_what_is_needed_is_fetched_once_and_converted(
    aws: Aws, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = command("upload_model", *ARGUMENTS, "--json")  # by the settings of the environment
    assert fetched(hub) == {"config.json", "pytorch_model.bin", *TOKENIZER}
    whole = manifest.read(aws, S3Url.parse(result.json["model_data"], "url"))
    assert whole is not None
    assert (whole.name, whole.weight_types) == ("tiny-j", ("F16",))
    hub.fetched.clear()
    # a proxy or a closed network: what was fetched is enough
    with monkeypatch.context() as patches:
        configure(patches, ENDPOINT=NOWHERE)
        again = upload("--json")
    assert "using what was fetched before" in again.err
    assert (again.json["model_data"], again.json["uploaded_files"]) == (result.json["model_data"], 0)
    assert upload("--json").json["uploaded_files"] == 0
    assert hub.fetched == []


def test_a_transfer_that_was_cut_off_goes_on(aws: Aws, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert aws.account
    configure(monkeypatch, DOWNLOAD_CHUNK_SIZE=1 << 20)  # what the hub's client writes at a time
    monkeypatch.setattr(file_download, "time", SimpleNamespace(sleep=lambda _: None))
    hub.files = {**hub.files, "merges.txt": bytes(5 << 19)}
    hub.cut_at = 3 << 19
    assert upload().code == 0
    assert [begin for name, begin in hub.fetched if name == "merges.txt"] == [0, 1 << 20]


def test_ctrl_c_does_not_wait_for_the_file(aws: Aws, hub: Hub) -> None:
    assert aws.account
    hub.holds = threading.Event()
    process = start("upload_model", *ARGUMENTS)
    try:
        while not hub.fetched:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        result = finish(process, timeout_s=WAIT_TIMEOUT_S / 2)  # long before the file goes on
    finally:
        hub.holds.set()
    assert result.code == 130
    assert "Run the same command again: it goes on" in result.err


def test_a_dry_run_fetches_nothing(aws: Aws, hub: Hub) -> None:
    assert aws.account
    result = upload("--dry-run")
    assert result.code == 0
    assert f"fetch org/tiny-j at float16 ({fake.COMMIT})" in result.out
    assert "pytorch_model.bin (" in result.out
    assert hub.fetched == []


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("GatedRepo", 403, ["org/tiny-j is gated", "ask for access on its page", "hf auth login"]),
        ("RepoNotFound", 401, ["there is no repository org/tiny-j on the hub, or it is private", "HF_TOKEN"]),
        ("RevisionNotFound", 404, ["org/tiny-j has no revision float16", "--revision takes"]),
        ("", 401, ["org/tiny-j"]),
        ("", 500, ["the hub answered 500", "run this again later"]),
    ],
)
def test_who_is_not_let_in_is_told_why(aws: Aws, hub: Hub, code: str, status: int, said: list[str]) -> None:
    assert aws.account
    hub.refuses = (status, {"X-Error-Code": code} if code else {})
    result = upload()
    assert result.code == 1
    for part in said:
        assert part in result.err
    assert len(result.err.splitlines()) == 2


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("settings", [{"ENDPOINT": NOWHERE}, {"HF_HUB_OFFLINE": True}])
def test_no_network(aws: Aws, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object]) -> None:
    assert aws.account
    configure(monkeypatch, **settings)
    result = upload()
    assert result.code == 1
    assert "the Hugging Face Hub cannot be reached from here" in result.err
    assert "`hf download org/tiny-j --revision float16 --local-dir tiny-j`" in result.err
    assert "scripts/upload-model tiny-j" in result.err


def test_an_adapter(aws: Aws, hub: Hub, tmp_path: Path) -> None:
    """Of the hub and of this machine: both say what it is and how it becomes a model."""
    assert aws.account
    files = {"adapter_config.json": b'{"peft_type": "LORA"}', "adapter_model.safetensors": b"x"}
    hub.files = files
    (tmp_path / "lora").mkdir()
    for name, data in files.items():
        (tmp_path / "lora" / name).write_bytes(data)
    for result, what in ((upload(), "org/tiny-j"), (call("upload_model", str(tmp_path / "lora")), "lora")):
        assert result.code == 1
        assert f"{what} is an adapter" in result.err
        assert "pip install peft" in result.err
        assert "merge_and_unload()" in result.err
    assert "scripts/upload-model tiny-j-merged" in upload().err


def test_a_repository_without_a_model(aws: Aws, hub: Hub) -> None:
    assert aws.account
    hub.files = {"README.md": b"# Nothing"}
    result = upload()
    assert result.code == 1
    assert "holds no model: config.json or the weights are missing" in result.err


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["config.json", "pytorch_model.bin", "model.safetensors"], ["config.json", "model.safetensors"]),
        (
            ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin", "other.bin"],
            ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin"],
        ),
        (
            ["model.safetensors.index.json", "model-1.safetensors", "pytorch_model.bin", "model-1.bin"],
            ["model.safetensors.index.json", "model-1.safetensors"],
        ),
        (["tf_model.h5"], []),
    ],
)
def test_one_format_of_weights_is_enough(names: list[str], wanted: list[str]) -> None:
    assert source._wanted(names) == wanted


def test_sources_and_names(tmp_path: Path) -> None:
    assert source.local_directory(str(tmp_path)) == tmp_path
    assert source.local_directory("EleutherAI/gpt-j-6b") is None
    for wrong in ("./missing", "missing", "a/b/c", "~/missing/"):
        with pytest.raises(UsageError, match="no such directory"):
            source.local_directory(wrong)
    assert remedies.default_revision("EleutherAI/gpt-j-6B") == "float16"
    assert remedies.default_revision("other/gpt-j") == "main"
    assert source.model_name("EleutherAI/gpt-j-6B", None) == "gpt-j-6b"
    assert source.model_name(".", tmp_path / "My Model_2") == "my-model-2"
