"""What is said of what is near a model; the commands that are given do what they promise."""

import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import GPTJConfig, GPTJForCausalLM

from gptj_serve.errors import StartupError
from gptj_serve.models import remedies
from gptj_serve.models.config import CONFIG
from gptj_serve.models.model_dir import find_checkpoint, find_directory
from gptj_serve.models.remedies import GPT_J
from gptj_serve.serving.tokenizing.files import read_plain
from support.tiny_model import TINY_CONFIG, random_tensors, write_model


def refusal(root: Path, given: str | None = None) -> str:
    started_s = time.monotonic()
    with pytest.raises(StartupError) as caught:
        find_checkpoint(root, given)
    assert time.monotonic() - started_s < 5  # far below what loading anything would take
    return str(caught.value)


def run_command_of(message: str) -> None:
    """Do what a message says, as a shell would; Python that it gives runs here, which is faster."""
    words = (f": {sys.executable} ", ": mkdir ", ": mv ", ": tar ", ": unzip ")
    start = min(found for found in map(message.find, words) if found >= 0)
    command = re.split(
        r"; expected a directory|, then copy|, and the tokenizer|; and give", message[start + 2 :]
    )[0]
    for part in command.split(" && "):
        program, *arguments = shlex.split(part)
        if program == sys.executable and arguments[0] == "-c":
            exec(arguments[1], {})
        else:
            subprocess.run([program, *arguments], check=True, capture_output=True)


def whole() -> dict[str, torch.Tensor]:
    return random_tensors(TINY_CONFIG, torch.float32)


# --- what is given is no directory


def test_a_name_of_the_hub() -> None:
    message = refusal(Path("/cwd/owner/my-gpt-j"), "owner/my-gpt-j")
    assert message.startswith("GPTJ_MODEL_DIR=owner/my-gpt-j: no such directory; ")
    assert message.endswith("hf download owner/my-gpt-j --local-dir my-gpt-j; and give my-gpt-j")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            "https://huggingface.co/EleutherAI/gpt-j-6b",
            "hf download EleutherAI/gpt-j-6b --revision float16 --local-dir gpt-j-6b",
        ),
        ("gpt-j-6b", "fetch it first"),
        ("/models/GPT-J-6B", "--revision float16 --local-dir /models/GPT-J-6B"),
        ("s3://bucket/gpt j/", "aws s3 cp --recursive 's3://bucket/gpt j/' model"),
    ],
)
def test_an_address(given: str, told: str) -> None:
    message = refusal(Path(given).absolute(), given)
    assert message.startswith(f"GPTJ_MODEL_DIR={given}: no such directory")
    assert told in message


@pytest.mark.parametrize("given", ["../gpt-j", "~/gpt-j", "gpt-j", "/models/gpt-j"])
def test_a_path_is_no_name_of_the_hub(given: str) -> None:
    assert refusal(Path("/nowhere"), given) == f"GPTJ_MODEL_DIR={given}: no such directory"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("gptj-q4.gguf", "llama.cpp's format, which is not served; take the model that it was made from"),
        ("notes.txt", "a file, expected a directory"),
    ],
)
def test_a_file(tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / name).write_bytes(b"something")
    message = refusal(tmp_path / name, name)
    assert message.startswith(f"GPTJ_MODEL_DIR={name}: ")
    assert told in message


def test_a_file_of_a_model(tmp_path: Path) -> None:
    path = write_model(tmp_path) / "model.safetensors"
    assert refusal(path, str(path)).endswith(f"expected the directory of the whole model; give {tmp_path}")


def test_a_file_of_weights_alone(tmp_path: Path) -> None:
    path = write_model(tmp_path) / "model.safetensors"
    lone = path.rename(tmp_path / "my gpt.safetensors")
    config = (tmp_path / CONFIG).rename(tmp_path / "config.away")
    run_command_of(refusal(lone))
    shutil.copyfile(config, tmp_path / "my gpt" / CONFIG)
    assert find_checkpoint(tmp_path / "my gpt").directory == tmp_path / "my gpt"


@pytest.mark.parametrize("kind", ["gztar", "zip"])
def test_an_archive(tmp_path: Path, kind: str) -> None:
    if kind == "zip" and shutil.which("unzip") is None:
        pytest.skip("unzip is not there")
    model = write_model(tmp_path / "made")
    archive = Path(shutil.make_archive(str(tmp_path / "to go" / "model"), kind, model))
    run_command_of(refusal(archive))
    assert find_checkpoint(tmp_path / "to go" / "model").num_weights > 0


def test_a_link_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to("elsewhere")
    assert refusal(tmp_path / "model").endswith("a link to elsewhere, which is not there")


# --- directories


def test_an_adapter(tmp_path: Path) -> None:
    told = {"peft_type": "LORA", "base_model_name_or_path": "EleutherAI/gpt-j-6b"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(told))
    (tmp_path / "adapter_model.safetensors").touch()
    message = refusal(tmp_path)
    assert f"{tmp_path} is an adapter (LORA) of EleutherAI/gpt-j-6b, not a whole model; merge it" in message
    assert "merge_and_unload()" in message
    assert f"give {tmp_path}-merged" in message


@pytest.mark.parametrize("content", ["", "[]", "{", '{"peft_type": 3}'])
def test_an_adapter_whose_config_is_broken(tmp_path: Path, content: str) -> None:
    (tmp_path / "adapter_config.json").write_text(content)
    assert "is an adapter" in refusal(tmp_path)


def test_an_adapter_of_a_whole_model_is_a_note(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (note,) = find_checkpoint(tmp_path).notes
    assert str(tmp_path / "adapter_config.json") in note
    assert "not applied" in note


def test_links_without_their_targets(tmp_path: Path) -> None:
    write_model(tmp_path)
    for path in list(tmp_path.iterdir()):
        path.unlink()
        path.symlink_to(f"../../blobs/{path.name}")
    message = refusal(tmp_path)
    assert "links whose files are not there: config.json, model.safetensors" in message
    assert "config.json -> ../../blobs/config.json" in message
    assert "is near it" not in message


def test_weights_that_are_a_link_to_nothing(tmp_path: Path) -> None:
    path = write_model(tmp_path) / "model.safetensors"
    path.unlink()
    path.symlink_to("../blobs/abc")
    message = refusal(tmp_path)
    assert "no weights" in message
    assert "model.safetensors -> ../blobs/abc" in message


@pytest.mark.parametrize("has_config", [True, False])
@pytest.mark.parametrize(
    ("name", "files"), [("model.fp16.safetensors", "safetensors"), ("pytorch_model.fp16.bin", "pickle")]
)
def test_variants(tmp_path: Path, name: str, files: str, has_config: bool) -> None:
    write_model(tmp_path, files=files)
    weights = next(path for path in tmp_path.iterdir() if path.name != CONFIG)
    weights.rename(tmp_path / name)
    if not has_config:
        (tmp_path / CONFIG).rename(tmp_path / "away")
    message = refusal(tmp_path)
    assert f"{tmp_path / name} is the variant 'fp16'" in message
    run_command_of(message)
    if not has_config:
        (tmp_path / "away").rename(tmp_path / CONFIG)
    assert find_checkpoint(tmp_path).files.format == files


def test_a_sharded_variant(tmp_path: Path) -> None:
    write_model(tmp_path, files="sharded safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.rename(tmp_path / "model.safetensors.index.fp16.json")
    run_command_of(refusal(tmp_path))
    assert len(find_checkpoint(tmp_path).files.paths) == 2


def test_a_model_in_two_places_is_no_two_models(tmp_path: Path) -> None:
    """As the command for wrapped names leaves it when its second half fails."""
    weights = write_model(tmp_path) / "model.safetensors"
    (tmp_path / "wrapped").mkdir()
    weights.rename(tmp_path / "wrapped" / weights.name)
    assert refusal(tmp_path).endswith(
        f"parts of a model, but none whole: {tmp_path} ({CONFIG} alone), {tmp_path / 'wrapped'} (weights "
        f"alone); put {CONFIG}, the tokenizer's files and the weights into one directory"
    )


def test_commands_call_programs_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of this environment; the shell's own Python often has no PyTorch."""
    merge = remedies.merge_command(tmp_path, tmp_path / "merged")
    assert merge.startswith(f"{sys.executable} -m pip install peft && {sys.executable} -c ")
    hf = Path(sys.executable).with_name("hf")
    assert remedies.download_command("a/b", "b") == f"{hf} download a/b --local-dir b"
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python3"))
    assert remedies.download_command("a/b", "b") == "hf download a/b --local-dir b"
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    assert remedies.tokenizer_command(tmp_path).endswith(f"tokenizer_config.json --local-dir {tmp_path}")
    assert remedies.merge_command(tmp_path, tmp_path).startswith("python3 -m pip install peft && python3 -c ")


def test_shards_without_their_index(tmp_path: Path) -> None:
    write_model(tmp_path, files="sharded pickle")
    (tmp_path / "pytorch_model.bin.index.json").unlink()
    assert "without their pytorch_model.bin.index.json" in refusal(tmp_path)


@pytest.mark.parametrize("is_old", [True, False])
def test_a_whole_pickled_model(tmp_path: Path, is_old: bool) -> None:
    """As older guides for SageMaker make it."""
    model = GPTJForCausalLM(GPTJConfig(**TINY_CONFIG))
    torch.save(model, tmp_path / "gptj.pt", _use_new_zipfile_serialization=not is_old)
    message = refusal(tmp_path)
    assert f"{tmp_path / 'gptj.pt'} is near it; a whole pickled model" in message
    assert "runs what is in the file" in message
    run_command_of(message)
    assert find_checkpoint(tmp_path).directory == tmp_path / "model"


@pytest.mark.parametrize("name", ["gptj.pt", "gpt.bin", "weights.pth", "gptj.safetensors"])
def test_weights_of_another_name(tmp_path: Path, name: str) -> None:
    files = "safetensors" if name.endswith("safetensors") else "pickle"
    write_model(tmp_path, files=files)
    weights = next(path for path in tmp_path.iterdir() if path.name != CONFIG)
    weights.rename(tmp_path / name)
    (tmp_path / "training_args.bin").touch()
    run_command_of(refusal(tmp_path))
    assert find_checkpoint(tmp_path).files.format == files


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (
            ["zero_to_fp32.py", "global_step8/mp_rank_00_model_states.pt"],
            "a DeepSpeed checkpoint; convert",
        ),
        (["latest_checkpointed_iteration.txt", "iter_0000010/x.pt"], "a Megatron checkpoint; convert it"),
        (["pytorch_model_fsdp_0/__0_0.distcp"], "an FSDP checkpoint; convert it: accelerate merge-weights"),
        (["gptj-Q4.gguf"], "llama.cpp's format"),
        (["flax_model.msgpack"], "another library's, expected PyTorch's weights"),
        (["model.tar.gz"], "is an archive; unpack it: "),
        (["optimizer.pt", "training_args.bin"], "it holds optimizer.pt, training_args.bin"),
        ([], "it is empty"),
    ],
)
def test_other_directories(tmp_path: Path, names: list[str], told: str) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    assert told in refusal(tmp_path)


def test_what_is_in_a_sub_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "a" / "lora").mkdir(parents=True)
    (tmp_path / "a" / "lora" / "adapter_config.json").write_text("{}")
    assert f"{tmp_path / 'a' / 'lora'} is an adapter" in refusal(tmp_path)


def test_a_tree_that_is_too_large(tmp_path: Path) -> None:
    for number in range(60):
        for below in range(60):
            (tmp_path / str(number) / str(below)).mkdir(parents=True)
    message = refusal(tmp_path)
    assert "more than 2000 folders; name" in message


# --- weights inside a wrapper


@pytest.mark.parametrize("files", ["safetensors", "sharded safetensors", "pickle", "sharded pickle"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"base_model.model.{name}",
        lambda name: f"model.{name.removeprefix('transformer.')}",
        lambda name: f"_fsdp_wrapped_module.{name.replace('.attn', '._fsdp_wrapped_module.attn')}",
    ],
)
def test_names_of_a_wrapper(tmp_path: Path, files: str, wrap: Callable[[str], str]) -> None:
    write_model(tmp_path, files=files, tensors={wrap(name): tensor for name, tensor in whole().items()})
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path}: the tensors' names are those of a model inside a wrapper: ")
    run_command_of(message)
    assert find_checkpoint(tmp_path).notes == ()


def test_a_wrapper_around_another_model(tmp_path: Path) -> None:
    """Taking the wrapper out would not make it fit: it is not promised."""
    tensors = {f"module.{name}": tensor for name, tensor in whole().items() if "h.1." not in name}
    write_model(tmp_path, tensors=tensors)
    assert "the weights do not fit config.json: missing" in refusal(tmp_path)


def test_an_adapter_inside_the_weights(tmp_path: Path) -> None:
    name = "transformer.h.0.attn.q_proj"
    tensors = whole()
    tensors[f"{name}.base_layer.weight"] = tensors.pop(f"{name}.weight")
    tensors[f"{name}.lora_A.default.weight"] = torch.zeros(2, 32)
    write_model(tmp_path, tensors=tensors)
    assert "an adapter that is not merged" in refusal(tmp_path)


@pytest.mark.parametrize("key", ["model", "module", "state_dict"])
def test_a_training_checkpoint(tmp_path: Path, key: str) -> None:
    write_model(tmp_path, files="pickle")
    path = tmp_path / "pytorch_model.bin"
    torch.save({key: whole(), "optimizer": {"state": {}}, "epoch": 3}, path)
    message = refusal(tmp_path)
    assert message.startswith(f"{path}: expected a dictionary of tensors; found a training checkpoint")
    run_command_of(message)
    assert find_checkpoint(tmp_path).files.format == "safetensors"
    assert path.exists()  # nothing is lost


# --- files that are not what they should be


@contextlib.contextmanager
def another_user() -> Iterator[None]:
    """Go on as a user whom root's files are closed to, as in a container with ``--user 10001``."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(10001)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory that other users reach: pytest's own are closed to them."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize("files", ["safetensors", "sharded safetensors", "pickle"])
@pytest.mark.parametrize("mode", [0o200, 0o600])
def test_weights_of_another_user(open_path: Path, files: str, mode: int) -> None:
    if mode == 0o600 and os.geteuid() != 0:
        pytest.skip("only root can go on as another user")
    write_model(open_path, files=files)
    for path in open_path.iterdir():
        if path.suffix != ".json":
            path.chmod(mode)
    with another_user():
        message = refusal(open_path)
    assert "cannot be read: Permission denied" in message
    assert f"mode {mode:04o}, of user {os.geteuid()}" in message
    assert message.endswith(f"chmod -R a+rX {open_path}")
    if mode == 0o600:
        subprocess.run(message.split("): ")[1], shell=True, check=True)
        with another_user():
            find_checkpoint(open_path)


@pytest.mark.parametrize("name", [CONFIG, "generation_config.json", "tokenizer.json", "merges.txt"])
def test_other_files_of_another_user(open_path: Path, name: str) -> None:
    write_model(open_path)
    (open_path / name).touch()
    (open_path / name).chmod(0o200)
    with another_user():
        message = refusal(open_path)
    assert message.startswith(f"{open_path / name}: cannot be read")
    assert f"chmod -R a+rX {open_path}" in message


def test_a_directory_of_another_user(open_path: Path) -> None:
    model = write_model(open_path / "a" / "model")
    (open_path / "a").chmod(0o200)
    with another_user():
        messages = [refusal(model), refusal(open_path)]
    (open_path / "a").chmod(0o700)
    assert all(f"chmod -R a+rX {open_path / 'a'}" in message for message in messages)


def make_socket(path: Path) -> None:
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as one:
        one.bind(str(path))


SPECIAL = {
    "a pipe (FIFO)": os.mkfifo,
    "a socket": make_socket,
    "a device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize(
    "name",
    [
        CONFIG,
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
        "chat_template.jinja",
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
    ],
)
def test_what_is_no_file_is_not_opened(open_path: Path, name: str, kind: str) -> None:
    write_model(open_path)
    (open_path / name).unlink(missing_ok=True)
    SPECIAL[kind](open_path / name)
    for find in (find_checkpoint, find_directory):
        with pytest.raises(StartupError) as caught:
            find(open_path)
        assert str(caught.value).startswith(f"{open_path / name}: is {kind}, expected a regular file")


def test_shards_that_are_no_files(open_path: Path) -> None:
    write_model(open_path, files="sharded safetensors")
    shard = open_path / "model-00002-of-00002.safetensors"
    shard.unlink()
    os.mkfifo(shard)
    assert refusal(open_path).startswith(f"{shard}: is a pipe (FIFO)")


@pytest.mark.parametrize("given", ["pipe", "device"])
def test_a_model_that_is_no_directory_but_a_pipe(open_path: Path, given: str) -> None:
    os.mkfifo(open_path / "pipe")
    path = open_path / "pipe" if given == "pipe" else Path("/dev/zero")
    assert "expected a directory" in refusal(path)


def test_a_loop_of_links(open_path: Path) -> None:
    (open_path / "model").symlink_to("model")
    assert "Too many levels of symbolic links" in refusal(open_path / "model")


def test_a_config_that_is_far_too_large(tmp_path: Path) -> None:
    write_model(tmp_path)
    os.truncate(tmp_path / CONFIG, 1 << 40)
    assert refusal(tmp_path).startswith(f"{tmp_path / CONFIG}: {1 << 40} bytes, expected ")


@pytest.mark.parametrize("name", [CONFIG, "generation_config.json", "model.safetensors.index.json"])
def test_pointers_of_git_lfs(tmp_path: Path, name: str) -> None:
    write_model(tmp_path, files="sharded safetensors")
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert refusal(tmp_path).startswith(f"{tmp_path / name}: is a Git LFS pointer")


def test_what_nobody_reads_does_not_matter(tmp_path: Path) -> None:
    os.mkfifo(write_model(tmp_path) / ".a-tool's.pipe")
    assert find_checkpoint(tmp_path).notes == ()


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(StartupError) as caught:
        read_plain(write_model(tmp_path))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}: no tokenizer.json, and no vocab.json to do without it; copy the ")
    assert message.endswith(
        f"hf download {GPT_J} tokenizer.json tokenizer_config.json --local-dir {tmp_path}"
    )
