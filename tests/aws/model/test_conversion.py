"""Whatever a checkpoint is, what goes up is its tensors in safetensors; what was broken off goes on."""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from gptj_serve.aws.common.errors import CommandError
from gptj_serve.aws.model import conversion
from gptj_serve.aws.model.prepare import needs_conversion
from gptj_serve.models.model_dir import Checkpoint, find_checkpoint
from support import tiny_model as tiny

SHARD_BYTES = 10_000
"""The tiny model has 60 kB in float16."""


@contextlib.contextmanager
def no_bar(_num_bytes: int) -> Iterator[Callable[[int], None]]:
    yield lambda _: None


def convert(
    model: Path, out: Path, *, keep_dtype: bool = False, shard_bytes: int = SHARD_BYTES
) -> Checkpoint:
    """Convert a model directory into another."""
    return conversion.convert(
        find_checkpoint(model), out, no_bar, keep_dtype=keep_dtype, shard_bytes=shard_bytes
    )


def stored(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors of a directory's safetensors."""
    return {
        name: tensor
        for path in sorted(directory.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("files", ["pickle", "sharded pickle", "safetensors", "sharded safetensors"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_the_same_tensors_in_float16(tmp_path: Path, files: str, dtype: torch.dtype) -> None:
    model = tiny.write_model(tmp_path / "model", files=files, dtype=dtype)
    checkpoint = convert(model, tmp_path / "out")
    original = tiny.random_tensors(tiny.TINY_CONFIG, dtype)
    assert_same(stored(tmp_path / "out"), {name: tensor.half() for name, tensor in original.items()})
    assert needs_conversion(checkpoint, False, SHARD_BYTES) is None
    for path in checkpoint.files.paths:
        assert path.stat().st_size < SHARD_BYTES + 2000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_type_can_be_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    model = tiny.write_model(tmp_path / "model", files="pickle", dtype=dtype)
    convert(model, tmp_path / "out", keep_dtype=True)
    assert_same(stored(tmp_path / "out"), tiny.random_tensors(tiny.TINY_CONFIG, dtype))


def test_one_file_is_not_numbered_and_has_no_index(tmp_path: Path) -> None:
    model = tiny.write_model(tmp_path / "model", files="pickle")
    checkpoint = convert(model, tmp_path / "out", shard_bytes=10**9)
    assert [path.name for path in checkpoint.files.paths] == ["model.safetensors"]
    assert not (tmp_path / "out/model.safetensors.index.json").exists()


def test_masks_of_old_checkpoints_are_left_behind(tmp_path: Path) -> None:
    tensors = tiny.random_tensors(tiny.TINY_CONFIG, torch.float16)
    masks = {"transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64, dtype=torch.bool)}
    model = tiny.write_model(tmp_path / "model", files="pickle", tensors={**tensors, **masks})
    convert(model, tmp_path / "out")
    assert_same(stored(tmp_path / "out"), tensors)


def test_tensors_that_share_memory_or_were_saved_transposed(tmp_path: Path) -> None:
    tensors = tiny.random_tensors(tiny.TINY_CONFIG, torch.float16)
    shared = torch.cat([tensors["transformer.h.0.attn.q_proj.weight"]] * 2)
    twisted = dict(tensors)
    twisted["transformer.h.0.attn.q_proj.weight"] = shared[:32]
    twisted["transformer.h.0.mlp.fc_in.weight"] = tensors["transformer.h.0.mlp.fc_in.weight"].T.contiguous().T
    model = tiny.write_model(tmp_path / "model", files="pickle", tensors=twisted)
    convert(model, tmp_path / "out")
    assert_same(stored(tmp_path / "out"), tensors)


def test_what_others_wrote_is_what_their_library_writes(tmp_path: Path) -> None:
    """Safetensors' own library reads a shard of ours with the header that it would write."""
    model = tiny.write_model(tmp_path / "model", files="pickle", dtype=torch.float16)
    convert(model, tmp_path / "out", shard_bytes=10**9)
    ours = tmp_path / "out/model.safetensors"
    save_file(load_file(ours), tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert ours.stat().st_size == (tmp_path / "theirs.safetensors").stat().st_size


def test_the_configuration_says_the_type_that_is_there(tmp_path: Path) -> None:
    model = tiny.write_model(tmp_path / "model", files="pickle", torch_dtype="float32", n_ctx=7)
    convert(model, tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["torch_dtype"], config["n_ctx"]) == ("float16", 7)
    convert(model, tmp_path / "kept", keep_dtype=True)
    assert json.loads((tmp_path / "kept/config.json").read_text())["torch_dtype"] == "float32"


@pytest.mark.parametrize(
    ("value", "said"), [(70000.0, "has a weight of 70000, more than float16"), (float("nan"), "holds NaN")]
)
def test_a_weight_that_float16_cannot_hold(tmp_path: Path, value: float, said: str) -> None:
    tensors = tiny.random_tensors(tiny.TINY_CONFIG, torch.float32)
    tensors["transformer.h.1.mlp.fc_out.weight"][3, 5] = value
    model = tiny.write_model(tmp_path / "model", tensors=tensors)
    with pytest.raises(CommandError, match=f"transformer.h.1.mlp.fc_out.weight {said}"):
        convert(model, tmp_path / "out")
    convert(model, tmp_path / "kept", keep_dtype=True)


class Case(NamedTuple):
    """A checkpoint, and why it would have to be converted."""

    files: str
    dtype: torch.dtype
    keep_dtype: bool
    shard_bytes: int
    why: str | None


@pytest.mark.parametrize(
    "case",
    [
        Case("safetensors", torch.float16, False, 10**9, None),
        Case("sharded safetensors", torch.float16, False, 1000, None),
        Case("safetensors", torch.float16, False, 1000, "the weights are one file of"),
        Case("safetensors", torch.float32, True, 10**9, None),
        Case("safetensors", torch.float32, False, 10**9, "the weights are F32"),
        Case("pickle", torch.float16, False, 10**9, "the weights are a pickle"),
    ],
)
def test_what_needs_no_conversion_is_left_as_it_is(tmp_path: Path, case: Case) -> None:
    checkpoint = find_checkpoint(tiny.write_model(tmp_path / "model", files=case.files, dtype=case.dtype))
    why = needs_conversion(checkpoint, case.keep_dtype, case.shard_bytes)
    assert why is None if case.why is None else str(why).startswith(case.why)


def test_a_tensor_larger_than_a_shard_has_one_of_its_own() -> None:
    sizes = [3, 4, 9, 2, 2, 2]
    tensors = [conversion.Tensor(str(number), (size,), torch.uint8) for number, size in enumerate(sizes)]
    shards = conversion.plan_shards(tensors, 7)
    assert [[tensor.shape[0] for tensor in shard] for shard in shards.values()] == [[3, 4], [9], [2, 2, 2]]
    assert list(shards) == [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]


@pytest.mark.parametrize("num_written", [0, 9, 24])
def test_it_goes_on_behind_the_last_whole_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_written: int
) -> None:
    """The shard that was being written is there in part, under another name."""
    model = tiny.write_model(tmp_path / "model", files="pickle")
    really, written = conversion._write_tensor, []

    def break_off(file: Any, tensor: Any, *arguments: Any) -> None:
        if len(written) == num_written:
            file.write(b"half of it")
            raise KeyboardInterrupt
        written.append(tensor.name)
        really(file, tensor, *arguments)

    out = tmp_path / "out"
    with monkeypatch.context() as patches:
        patches.setattr(conversion, "_write_tensor", break_off)
        with pytest.raises(KeyboardInterrupt):
            convert(model, out)
    whole = {path: path.stat().st_ino for path in out.glob("*.safetensors")}
    assert len(list(out.glob("*.partial"))) == 1
    assert bool(whole) == bool(num_written)
    convert(model, out)
    assert {path: path.stat().st_ino for path in whole} == whole
    assert not list(out.glob("*.partial"))
    wanted = tiny.random_tensors(tiny.TINY_CONFIG, torch.float16)
    assert_same(stored(out), wanted)


def test_a_shard_that_was_damaged_afterwards_is_noticed(tmp_path: Path) -> None:
    model = tiny.write_model(tmp_path / "model", files="pickle")
    checkpoint = convert(model, tmp_path / "out")
    tensors = load_file(checkpoint.files.paths[1])
    save_file({name: tensor.float() for name, tensor in tensors.items()}, checkpoint.files.paths[1])
    with pytest.raises(Exception, match=r"model-00002-of-.*not as it was written: delete it"):
        convert(model, tmp_path / "out")


def test_two_at_once_do_not_write_over_each_other(tmp_path: Path) -> None:
    model = tiny.write_model(tmp_path / "model", files="pickle")
    out = tmp_path / "out"
    out.mkdir()
    with (
        conversion._locked(out),
        pytest.raises(CommandError, match="another upload-model converts") as caught,
    ):
        convert(model, out)
    assert "--work-dir" in str(caught.value.hint)


def test_a_disk_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.write_model(tmp_path / "model", files="pickle")
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 30)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CommandError, match=r"take 6\d\.\d kB and 1 GB to spare, 1.1 GB are free") as caught:
        convert(model, tmp_path / "out")
    assert "--work-dir" in str(caught.value.hint)
