"""Finding the model, and refusing a wrong or broken one before anything is loaded."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPTJConfig, GPTJForCausalLM

from gptj_serve.errors import StartupError
from gptj_serve.models.config import CONFIG
from gptj_serve.models.families import read_architecture, shapes_of
from gptj_serve.models.model_dir import find_checkpoint
from support.tiny_model import TINY_CONFIG, random_tensors, write_model

FORMATS = ("safetensors", "sharded safetensors", "pickle", "sharded pickle")


def refusal(root: Path) -> str:
    with pytest.raises(StartupError) as caught:
        find_checkpoint(root)
    return str(caught.value)


def model_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = GPTJForCausalLM(GPTJConfig(**config))
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("changes", [{}, {"n_inner": 48, "n_layer": 3}, {"n_inner": None}])
def test_expected_shapes_are_those_of_transformers(changes: dict[str, Any]) -> None:
    config = TINY_CONFIG | changes
    assert shapes_of(read_architecture(config, Path(CONFIG))) == model_shapes(config)


def test_defaults_are_gpt_j_6b() -> None:
    config = read_architecture({"model_type": "gptj"}, Path(CONFIG))
    default = GPTJConfig()
    dims = (config.num_layers, config.width, config.num_heads, config.positions.dim)
    assert dims == (default.n_layer, default.n_embd, default.n_head, default.rotary_dim)
    assert (config.max_positions, config.vocab_size) == (default.n_positions, default.vocab_size)
    assert (config.epsilon, config.activation) == (default.layer_norm_epsilon, default.activation_function)
    assert sum(torch.Size(shape).numel() for shape in shapes_of(config).values()) == 6_050_882_784


@pytest.mark.parametrize("files", FORMATS)
def test_a_whole_model_is_described(tmp_path: Path, files: str) -> None:
    write_model(tmp_path, files=files, dtype=torch.float16, eos_token_id=[98, 99])
    checkpoint = find_checkpoint(tmp_path)
    of = checkpoint.architecture
    dims = (of.num_layers, of.width, of.num_heads, of.inner)
    assert dims == (2, 32, 4, 128)
    assert (of.positions.dim, of.max_positions, of.vocab_size) == (4, 64, 100)
    assert (checkpoint.directory, checkpoint.generation.eos_token_ids) == (tmp_path, (98, 99))
    assert checkpoint.files.format == files.split()[-1]
    assert len(checkpoint.files.paths) == (2 if "sharded" in files else 1)
    tensors = random_tensors(TINY_CONFIG, torch.float16)
    assert checkpoint.num_weights == sum(tensor.numel() for tensor in tensors.values())


def test_safetensors_are_preferred(tmp_path: Path) -> None:
    write_model(tmp_path, files="pickle")
    write_model(tmp_path, files="safetensors")
    assert [path.name for path in find_checkpoint(tmp_path).files.paths] == ["model.safetensors"]


def test_safetensors_are_checked_without_torch(tmp_path: Path) -> None:
    write_model(tmp_path, files="sharded safetensors")
    code = (
        "import sys; from pathlib import Path; from gptj_serve.models.model_dir import find_checkpoint; "
        "find_checkpoint(Path(sys.argv[1])); assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


# --- finding the directory


@pytest.mark.parametrize("nested", ["", "gptj", "a/b/c/d"])
def test_finds_a_nested_model(tmp_path: Path, nested: str) -> None:
    write_model(tmp_path / nested)
    for ignored in (".cache/copy", "__MACOSX/gptj", "code"):
        write_model(tmp_path / ignored)
    assert find_checkpoint(tmp_path).directory == tmp_path / nested


def test_checkpoints_inside_a_model_are_not_another_model(tmp_path: Path) -> None:
    write_model(tmp_path)
    write_model(tmp_path / "checkpoint-100")
    assert find_checkpoint(tmp_path).directory == tmp_path


def test_a_whole_model_wins_over_a_lone_config(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text("{}")
    write_model(tmp_path / "gptj")
    assert find_checkpoint(tmp_path).directory == tmp_path / "gptj"


def test_symbolic_links_are_followed(tmp_path: Path) -> None:
    real = write_model(tmp_path / ".store" / "real")
    (tmp_path / "link").symlink_to(real, target_is_directory=True)
    (tmp_path / "link" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert find_checkpoint(tmp_path).directory == tmp_path / "link"


def test_one_model_behind_two_names_is_one(tmp_path: Path) -> None:
    write_model(tmp_path / "v1")
    (tmp_path / "latest").symlink_to("v1")
    (tmp_path / "again").symlink_to(tmp_path)
    assert find_checkpoint(tmp_path).directory in (tmp_path / "v1", tmp_path / "latest")


def test_several_models_are_listed(tmp_path: Path) -> None:
    write_model(tmp_path / "one")
    write_model(tmp_path / "deeper" / "two")
    message = refusal(tmp_path)
    assert "several models" in message
    assert str(tmp_path / "one") in message
    assert str(tmp_path / "deeper" / "two") in message


def test_no_model(tmp_path: Path) -> None:
    write_model(tmp_path / "a/b/c/d/too_deep")
    message = refusal(tmp_path)
    assert f"GPTJ_MODEL_DIR={tmp_path}" in message
    assert "config.json" in message
    assert "model.safetensors" in message


def test_no_such_directory(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent") == f"GPTJ_MODEL_DIR={tmp_path / 'absent'}: no such directory"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_folder(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0)
    assert "cannot be read" in refusal(tmp_path)


# --- config.json


def test_weights_without_a_config(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / CONFIG).unlink()
    assert f"{tmp_path / CONFIG}: cannot be read: No such file" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("text", "told"), [("{", "not valid JSON"), ("[]", "expected a JSON object, found list")]
)
def test_a_config_that_is_no_object(tmp_path: Path, text: str, told: str) -> None:
    write_model(tmp_path)
    (tmp_path / CONFIG).write_text(text)
    assert refusal(tmp_path).startswith(f"{tmp_path / CONFIG}: {told}")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
        ({"architectures": ["GPTJForSequenceClassification"]}, "supported: GPTJForCausalLM"),
        ({"model_type": None, "architectures": None}, "supported: GPTJForCausalLM"),
        ({"n_layer": 0}, "n_layer=0: must be a whole number from 1 to 1024"),
        ({"n_embd": "32"}, "n_embd='32'"),
        ({"vocab_size": True}, "vocab_size=True"),
        ({"n_head": 5}, "n_embd=32 is not a multiple of n_head=5"),
        ({"rotary_dim": 64}, "at most n_embd / n_head = 8"),
        ({"rotary_dim": 3}, "rotary_dim=3 must be even"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is not supported"),
        ({"transformers_weights": "other.safetensors"}, "transformers_weights is not supported"),
        ({"eos_token_id": "a"}, "eos_token_id='a': must be token ids from 0 to 99"),
    ],
)
def test_a_wrong_config(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    write_model(tmp_path, tensors=random_tensors(TINY_CONFIG, torch.float32))
    (tmp_path / CONFIG).write_text(json.dumps(TINY_CONFIG | changes))
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path / CONFIG}: ")
    assert told in message


@pytest.mark.parametrize(
    ("in_config", "in_generation", "expected"),
    [
        (5, None, (5,)),
        ([5, 6], None, (5, 6)),
        (5, {"eos_token_id": [7, 8]}, (7, 8)),
        (5, {"eos_token_id": 0}, (0,)),
        (5, {"max_length": 20}, (5,)),
        (None, None, ()),
    ],
)
def test_eos(tmp_path: Path, in_config: Any, in_generation: Any, expected: tuple[int, ...]) -> None:
    write_model(tmp_path, eos_token_id=in_config)
    if in_generation:
        (tmp_path / "generation_config.json").write_text(json.dumps(in_generation))
    assert find_checkpoint(tmp_path).generation.eos_token_ids == expected


def test_eos_that_nobody_gives(tmp_path: Path) -> None:
    """GPT-J's own, where the vocabulary has it."""
    config = {key: value for key, value in TINY_CONFIG.items() if key != "eos_token_id"}
    write_model(tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps(config))
    assert find_checkpoint(tmp_path).generation.eos_token_ids == ()
    shutil.rmtree(tmp_path)
    large = {"vocab_size": 50400, "n_embd": 8, "n_head": 1}
    write_model(tmp_path, **large)
    (tmp_path / CONFIG).write_text(json.dumps(config | large))
    assert find_checkpoint(tmp_path).generation.eos_token_ids == (50256,)


def test_a_broken_generation_config(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "generation_config.json").write_text("not JSON")
    assert refusal(tmp_path).startswith(f"{tmp_path / 'generation_config.json'}: not valid JSON")


# --- names and shapes

Edit = Callable[[dict[str, torch.Tensor]], Any]


@pytest.mark.parametrize("files", FORMATS)
@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda t: t.pop("lm_head.bias"), "missing: lm_head.bias"),
        (
            lambda t: t.update({"transformer.h.2.ln_1.bias": torch.zeros(32)}),
            "left over: transformer.h.2.ln_1.bias",
        ),
        (
            lambda t: t.update({"transformer.wte.weight": torch.zeros(99, 32)}),
            "wrong: transformer.wte.weight is [99, 32], expected [100, 32]",
        ),
        (
            lambda t: t.update({"lm_head.bias": torch.zeros(100, dtype=torch.int32)}),
            "wrong: lm_head.bias is [100] of no float type, expected [100]",
        ),
    ],
)
def test_tensors_that_do_not_fit(tmp_path: Path, files: str, edit: Edit, told: str) -> None:
    tensors = random_tensors(TINY_CONFIG, torch.float32)
    edit(tensors)
    write_model(tmp_path, files=files, tensors=tensors)
    assert refusal(tmp_path).startswith(f"{tmp_path}: the weights do not fit config.json: {told}; take the ")


def test_many_names_are_counted(tmp_path: Path) -> None:
    write_model(tmp_path, tensors=random_tensors(TINY_CONFIG | {"n_layer": 1}, torch.float32))
    message = refusal(tmp_path)
    assert "transformer.h.1.ln_1.weight" in message
    assert "… (10 in all)" in message
    assert message.count("transformer.h.1") == 5


def test_everything_wrong_is_told_at_once(tmp_path: Path) -> None:
    tensors = random_tensors(TINY_CONFIG, torch.float32)
    tensors["other"] = tensors.pop("lm_head.weight")
    tensors["lm_head.bias"] = torch.zeros(1)
    write_model(tmp_path, tensors=tensors)
    message = refusal(tmp_path)
    for part in ("missing: lm_head.weight", "left over: other", "wrong: lm_head.bias"):
        assert part in message


@pytest.mark.parametrize("files", ["safetensors", "pickle"])
def test_masks_of_old_checkpoints_do_no_harm(tmp_path: Path, files: str) -> None:
    tensors = random_tensors(TINY_CONFIG, torch.float16)
    for layer in range(2):
        mask = torch.ones(1, 1, 64, 64).tril()
        tensors[f"transformer.h.{layer}.attn.bias"] = mask.bool() if layer else mask.to(torch.uint8)
        tensors[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e9)
    write_model(tmp_path, files=files, tensors=tensors)
    assert find_checkpoint(tmp_path).num_weights == sum(
        torch.Size(shape).numel() for shape in model_shapes(TINY_CONFIG).values()
    )


def test_names_without_the_prefix(tmp_path: Path) -> None:
    tensors = random_tensors(TINY_CONFIG, torch.float16)
    write_model(tmp_path, tensors={name.removeprefix("transformer."): t for name, t in tensors.items()})
    assert find_checkpoint(tmp_path).directory == tmp_path


def test_tied_embeddings_need_no_head(tmp_path: Path) -> None:
    tensors = random_tensors(TINY_CONFIG, torch.float16)
    del tensors["lm_head.weight"]
    write_model(tmp_path, tensors=tensors, tie_word_embeddings=True)
    assert find_checkpoint(tmp_path).architecture.tied_head


# --- files


def test_no_weights(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text(json.dumps(TINY_CONFIG))
    assert refusal(tmp_path).startswith(f"{tmp_path}: no weights; expected one of model.safetensors")


@pytest.mark.parametrize("files", ["sharded safetensors", "sharded pickle"])
def test_a_shard_that_is_not_there(tmp_path: Path, files: str) -> None:
    write_model(tmp_path, files=files)
    (shard,) = tmp_path.glob("*-00002-of-00002.*")
    shard.unlink()
    assert f"lists files that are not there: {shard.name};" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("index", "told"),
    [
        ({"weight_map": {"a": "../outside.safetensors"}}, "outside its directory: ../outside.safetensors"),
        ({"weight_map": {}}, 'expected "weight_map"'),
        ({}, 'expected "weight_map"'),
    ],
)
def test_a_broken_index(tmp_path: Path, index: dict[str, Any], told: str) -> None:
    (tmp_path / CONFIG).write_text(json.dumps(TINY_CONFIG))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert told in refusal(tmp_path)


@pytest.mark.parametrize("change_bytes", [-1000, -1, 1])
def test_safetensors_of_the_wrong_length(tmp_path: Path, change_bytes: int) -> None:
    path = write_model(tmp_path) / "model.safetensors"
    whole_bytes = path.stat().st_size
    os.truncate(path, whole_bytes + change_bytes)
    message = refusal(tmp_path)
    assert message.startswith(f"{path}: expected {whole_bytes} bytes")
    assert f"found {whole_bytes + change_bytes}" in message


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "not a safetensors file (0 bytes)"),
        (b"\xff" * 40, "not a safetensors file (40 bytes)"),
        ((500).to_bytes(8, "little") + b"{", "expected more than 508 bytes by its own header, found 9"),
        ((2).to_bytes(8, "little") + b"[]", "header is corrupt"),
        ((7).to_bytes(8, "little") + b'{"a":1}', "header is corrupt"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
    ],
)
def test_what_is_no_safetensors_file(tmp_path: Path, content: bytes, told: str) -> None:
    path = write_model(tmp_path) / "model.safetensors"
    path.write_bytes(content)
    message = refusal(tmp_path)
    assert message.startswith(f"{path}: ")
    assert told in message


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F16", "shape": [2, 2], "data_offsets": [0, 4]},
        {"dtype": "F16", "shape": [-2, -1], "data_offsets": [0, 4]},
        {"dtype": "F13", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F16", "shape": [2], "data_offsets": [0]},
    ],
)
def test_a_header_that_contradicts_itself(tmp_path: Path, entry: dict[str, Any]) -> None:
    path = write_model(tmp_path) / "model.safetensors"
    header = json.dumps({"lm_head.bias": entry}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert refusal(tmp_path).startswith(f"{path}: the safetensors header is corrupt")


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_truncated_pickle(tmp_path: Path, kept: float) -> None:
    path = write_model(tmp_path, files="pickle") / "pytorch_model.bin"
    kept_bytes = int(path.stat().st_size * kept)
    os.truncate(path, kept_bytes)
    message = refusal(tmp_path)
    assert message.startswith(f"{path}: not a whole PyTorch checkpoint")
    assert f"({kept_bytes} bytes)" in message


def test_a_pickle_that_is_damaged_inside(tmp_path: Path) -> None:
    path = write_model(tmp_path, files="pickle") / "pytorch_model.bin"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_xx"))
    message = refusal(tmp_path)
    assert message.startswith(f"{path}: ")
    assert "weights_only" not in message


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_malicious_pickle_runs_nothing(tmp_path: Path) -> None:
    trace = tmp_path / "code_was_run"
    path = write_model(tmp_path / "model", files="pickle") / "pytorch_model.bin"
    torch.save({**random_tensors(TINY_CONFIG, torch.float16), "lm_head.bias": Malicious(trace)}, path)
    message = refusal(tmp_path / "model")
    assert message.startswith(f"{path}: refused: it asks for code to be run (posix.mkdir)")
    assert "weights_only" not in message
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists()  # the trap does work


def test_a_bare_pickle_is_not_opened(tmp_path: Path) -> None:
    """Neither a zip file nor what PyTorch wrote before."""
    trace = tmp_path / "code_was_run"
    path = write_model(tmp_path / "model", files="pickle") / "pytorch_model.bin"
    path.write_bytes(pickle.dumps({"lm_head.bias": Malicious(trace)}))
    assert "not a whole PyTorch checkpoint" in refusal(tmp_path / "model")
    assert not trace.exists()


@pytest.mark.parametrize("content", [[1, 2], {"model": {}}])
def test_a_pickle_of_something_else(tmp_path: Path, content: Any) -> None:
    path = write_model(tmp_path, files="pickle") / "pytorch_model.bin"
    torch.save(content, path)
    assert f"{path}: expected a dictionary of tensors" in refusal(tmp_path)
