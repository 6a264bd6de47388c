"""Loading packed weights: right values from every kind of file, in pieces of any size; clear refusals."""

import itertools
import json
import logging
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPTJForCausalLM

from gptj_serve.engine import memory
from gptj_serve.engine.fused.weights import load as loader
from gptj_serve.engine.fused.weights import upload
from gptj_serve.engine.fused.weights.load import load_weights
from gptj_serve.engine.fused.weights.pack import PackedWeights
from gptj_serve.engine.memory import HostMemory
from gptj_serve.errors import StartupError
from gptj_serve.models import sources
from gptj_serve.models.model_dir import find_checkpoint
from gptj_serve.models.sources import FileSource
from support.packed_weights import assert_packed
from support.server import WAIT_TIMEOUT_S
from support.tiny_model import TINY_CONFIG, random_tensors, write_model

CPU = torch.device("cpu")
FORMATS = ("safetensors", "sharded safetensors", "pickle", "sharded pickle")
SHAPES = [
    {"n_layer": 1},
    {"n_layer": 3, "n_inner": 40, "vocab_size": 7, "eos_token_id": 6},
    {"n_embd": 8, "n_head": 1},
]


def load(directory: Path, dtype: torch.dtype = torch.float32, **options: int) -> PackedWeights:
    return load_weights(find_checkpoint(directory), CPU, dtype, **options)


def transformers_state(directory: Path) -> dict[str, torch.Tensor]:
    """The state dictionary that Transformers loads, in the files' own type."""
    model = GPTJForCausalLM.from_pretrained(directory, dtype="auto", local_files_only=True)
    state: dict[str, torch.Tensor] = model.state_dict()
    return state


@pytest.mark.parametrize("files", FORMATS)
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
def test_every_tensor_lands_where_the_layout_says(tmp_path: Path, files: str, stored: torch.dtype) -> None:
    write_model(tmp_path, files=files, dtype=stored)
    assert_packed(load(tmp_path), transformers_state(tmp_path), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_type_becomes_every_type(tmp_path: Path, stored: torch.dtype, dtype: torch.dtype) -> None:
    write_model(tmp_path, dtype=stored)
    assert_packed(load(tmp_path, dtype), random_tensors(TINY_CONFIG, stored), dtype)


@pytest.mark.parametrize("changes", SHAPES)
def test_other_dimensions(tmp_path: Path, changes: dict[str, int]) -> None:
    write_model(tmp_path, dtype=torch.float16, **changes)
    assert_packed(load(tmp_path), transformers_state(tmp_path), torch.float32)


# a number takes 2 or 4 bytes, a row 64 or 128: borders within rows, at their ends, and across several
@pytest.mark.parametrize("chunk_bytes", [1, 6, 62, 64, 66, 129, 300, 1000, 4097])
@pytest.mark.parametrize("files", ["sharded safetensors", "pickle"])
def test_chunks_of_any_size(tmp_path: Path, files: str, chunk_bytes: int) -> None:
    changes: dict[str, Any] = {"n_inner": 20, "vocab_size": 9, "eos_token_id": 8}
    write_model(tmp_path, files=files, dtype=torch.float16, **changes)
    weights = load(tmp_path, chunk_bytes=chunk_bytes, num_readers=3)
    assert_packed(weights, random_tensors(TINY_CONFIG | changes, torch.float16), torch.float32)


def test_files_whose_tensors_are_not_aligned(tmp_path: Path) -> None:
    """The format does not promise that tensors begin at multiples of their numbers' size."""
    write_model(tmp_path, dtype=torch.float32)
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    header_bytes = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + header_bytes] + b" ", content[8 + header_bytes :]
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    assert_packed(load(tmp_path), random_tensors(TINY_CONFIG, torch.float32), torch.float32)


def test_pickled_tensors_that_are_transposed(tmp_path: Path) -> None:
    tensors = random_tensors(TINY_CONFIG, torch.float16)
    name = "transformer.h.0.mlp.fc_out.weight"
    turned = tensors | {name: tensors[name].T.contiguous().T}
    assert not turned[name].is_contiguous()
    write_model(tmp_path, files="pickle", tensors=turned)
    assert_packed(load(tmp_path), tensors, torch.float32)


def test_names_without_the_prefix_and_masks(tmp_path: Path) -> None:
    tensors = random_tensors(TINY_CONFIG, torch.float16)
    short = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    short["h.0.attn.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.bool)
    write_model(tmp_path, tensors=short)
    assert_packed(load(tmp_path), tensors, torch.float32)


# --- tied embeddings


@pytest.mark.parametrize("files", FORMATS)
def test_tied_embeddings_share_their_memory(tmp_path: Path, files: str) -> None:
    tensors = random_tensors(TINY_CONFIG, torch.float16)
    del tensors["lm_head.weight"]
    write_model(tmp_path, files=files, tensors=tensors, tie_word_embeddings=True)
    weights = load(tmp_path)
    assert weights.head.tensors[0] is weights.embedding_VD
    assert_packed(weights, transformers_state(tmp_path), torch.float32)


@pytest.mark.parametrize("is_equal", [True, False])
def test_a_tied_head_that_is_in_the_file(tmp_path: Path, is_equal: bool) -> None:
    """As in Transformers, what the file holds decides."""
    tensors = random_tensors(TINY_CONFIG, torch.float16)
    if is_equal:
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    write_model(tmp_path, tensors=tensors, tie_word_embeddings=True)
    weights = load(tmp_path)
    assert weights.is_tied is is_equal
    assert_packed(weights, transformers_state(tmp_path), torch.float32)


def test_a_tied_head_of_another_shape(tmp_path: Path) -> None:
    tensors = random_tensors(TINY_CONFIG, torch.float16)
    tensors["lm_head.weight"] = torch.zeros(3, 32)
    write_model(tmp_path, tensors=tensors, tie_word_embeddings=True)
    with pytest.raises(StartupError, match=r"lm_head\.weight is \[3, 32\], expected \[100, 32\]"):
        load(tmp_path)


# --- files that change after the check


def refusal(directory: Path, change: Any, **options: int) -> str:
    checkpoint = find_checkpoint(directory)
    change()
    with pytest.raises(StartupError) as caught:
        load_weights(checkpoint, CPU, torch.float32, **options)
    return str(caught.value)


@pytest.mark.parametrize("files", FORMATS)
@pytest.mark.parametrize("size", [0, 3, 100, -1])
def test_a_file_that_was_cut_off(tmp_path: Path, files: str, size: int) -> None:
    write_model(tmp_path, files=files)
    path = find_checkpoint(tmp_path).files.paths[-1]
    size = size if size >= 0 else path.stat().st_size + size
    assert str(path) in refusal(tmp_path, lambda: os.truncate(path, size))


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    write_model(tmp_path, files="sharded safetensors")
    path = find_checkpoint(tmp_path).files.paths[1]
    assert refusal(tmp_path, path.unlink) == f"{path}: cannot be read: No such file or directory"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lm_head.bias": None}, "missing: lm_head.bias"),
        ({"transformer.h.2.ln_1.bias": torch.zeros(32)}, "left over: transformer.h.2.ln_1.bias"),
        ({"lm_head.bias": torch.zeros(99)}, "wrong: lm_head.bias is [99], expected [100]"),
        ({"lm_head.bias": torch.zeros(100, dtype=torch.int8)}, "lm_head.bias is [100] of no float type"),
        ({"wte.weight": torch.zeros(100, 32)}, "hold both transformer.wte.weight and wte.weight"),
    ],
)
@pytest.mark.parametrize("files", ["safetensors", "pickle"])
def test_other_tensors(tmp_path: Path, files: str, change: dict[str, Any], said: str) -> None:
    write_model(tmp_path, files=files)
    tensors = random_tensors(TINY_CONFIG, torch.float32) | change
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    message = refusal(tmp_path, lambda: write_model(tmp_path, files=files, tensors=tensors))
    assert str(tmp_path) in message
    assert said in message


def test_a_file_that_is_cut_off_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path)
    path = tmp_path / "model.safetensors"
    size = path.stat().st_size
    empty_weights = loader.empty_weights

    def cut(*args: Any, **options: Any) -> PackedWeights:
        os.truncate(path, size - 10)
        return empty_weights(*args, **options)

    monkeypatch.setattr(loader, "empty_weights", cut)
    message = refusal(tmp_path, lambda: None)
    assert message.startswith(f"{path}: ends at byte {size - 10}, within a tensor")


def test_a_file_that_is_written_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path)
    path = tmp_path / "model.safetensors"

    def write(*args: Any, **options: Any) -> upload.Uploaded:
        uploaded = upload.upload(*args, **options)
        with path.open("r+b") as file:
            file.seek(-4, os.SEEK_END)
            file.write(b"abcd")
        os.utime(path, (1, 1))
        return uploaded

    monkeypatch.setattr(loader, "upload", write)
    assert refusal(tmp_path, lambda: None).startswith(f"{path}: was changed while it was loaded")


# --- reading


def test_short_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read may give less than was asked for: at most 2 GiB come at once, or what a signal left time for."""
    write_model(tmp_path, dtype=torch.float16)
    preadv = os.preadv
    counts = []

    def short(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        counts.append(preadv(descriptor, [buffers[0][:37]], offset))
        return counts[-1]

    monkeypatch.setattr(sources.os, "preadv", short)
    assert_packed(load(tmp_path), random_tensors(TINY_CONFIG, torch.float16), torch.float32)
    assert max(counts) == 37


def test_an_error_in_one_reader_ends_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path)
    numbers, failing, has_failed = itertools.count(1), [], threading.Event()
    barrier, met = threading.Barrier(4, timeout=WAIT_TIMEOUT_S), threading.local()

    def fails_later(_: int, buffers: list[memoryview], __: int) -> int:
        if not hasattr(met, "once"):
            met.once = barrier.wait()  # all are there
        number = next(numbers)
        if number == 20:
            failing.append(threading.current_thread())
            has_failed.set()
            raise OSError(5, "Input/output error")
        if number > 20:
            has_failed.wait()
            failing[0].join()  # however long it takes to tell the others
        return len(buffers[0])

    monkeypatch.setattr(sources.os, "preadv", fails_later)
    before = threading.active_count()
    with pytest.raises(StartupError) as caught:
        load(tmp_path, chunk_bytes=128, num_readers=4)
    assert str(caught.value) == f"{tmp_path / 'model.safetensors'}: cannot be read: Input/output error"
    assert threading.active_count() == before
    # there are more than a thousand chunks; each of the others was reading one
    assert next(numbers) - 1 <= 20 + 3


def test_errors_that_nobody_expects_reach_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path)

    def broken(*_: object) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(FileSource, "read", broken)
    with pytest.raises(RuntimeError, match="something else"):
        load(tmp_path)


def test_readers_work_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path, dtype=torch.float16)
    barrier = threading.Barrier(4, timeout=WAIT_TIMEOUT_S)
    preadv, met = os.preadv, threading.local()

    def together(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if not hasattr(met, "once"):
            met.once = barrier.wait()
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(sources.os, "preadv", together)
    assert_packed(load(tmp_path, num_readers=4), random_tensors(TINY_CONFIG, torch.float16), torch.float32)


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    write_model(tmp_path, files="sharded safetensors")
    before = len(os.listdir("/proc/self/fd"))
    load(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


# --- memory and log


def test_refuses_before_reading_what_has_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path)
    checkpoint = find_checkpoint(tmp_path)
    monkeypatch.setattr(loader, "upload", lambda *_, **__: pytest.fail("read all the same"))
    needed_bytes = 2 * 4 * checkpoint.num_weights  # the buffers are as large as what goes through them
    monkeypatch.setattr(memory, "memory_limit_bytes", lambda: needed_bytes - 1)
    with pytest.raises(StartupError, match="this container may use"):
        load_weights(checkpoint, CPU, torch.float32)
    there = HostMemory(needed_bytes - 1, 2 * needed_bytes, None)
    with monkeypatch.context() as patch:
        patch.setattr(memory, "host_memory", lambda: there)
        with pytest.raises(StartupError, match="of the machine's"):
            load_weights(checkpoint, CPU, torch.float32)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2 * checkpoint.num_weights - 1, 1 << 30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    with pytest.raises(StartupError, match="a GPU has too little free memory"):
        load_weights(checkpoint, torch.device("cuda"), torch.float16)


def test_out_of_memory_while_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = find_checkpoint(write_model(tmp_path))
    free = iter([1 << 30, 0])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (next(free), 1 << 30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(loader, "empty_weights", full)
    with pytest.raises(StartupError, match=r"a GPU has too little free memory: .* 0\.00 GiB of 1\.00 GiB"):
        load_weights(checkpoint, torch.device("cuda"), torch.float16)


def test_logs_one_record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = find_checkpoint(write_model(tmp_path, dtype=torch.float16))
    with caplog.at_level(logging.INFO, logger="gptj_serve"):
        load_weights(checkpoint, CPU, torch.float32)
    (record,) = [record for record in caplog.records if record.name == loader.__name__]
    fields = record.fields  # type: ignore[attr-defined]
    assert fields["event"] == "model_loaded"
    assert fields["file_bytes"] == 2 * checkpoint.num_weights
    assert fields["device_bytes"] == 4 * checkpoint.num_weights
    phases = ("headers_seconds", "allocate_seconds", "upload_seconds")
    assert 0 < sum(fields[phase] for phase in phases) == pytest.approx(fields["seconds"], abs=0.003)
    assert fields["gb_per_second"] > 0
    assert json.dumps(fields)


WITHOUT_TRANSFORMERS = """
import sys
from pathlib import Path
import torch
from gptj_serve.engine.fused.weights.load import load_weights
from gptj_serve.models.model_dir import find_checkpoint
for directory in sys.argv[1:]:
    load_weights(find_checkpoint(Path(directory)), torch.device("cpu"), torch.float32)
heavy = {"transformers", "deepspeed", "safetensors"} & {name.split(".")[0] for name in sys.modules}
assert not heavy, heavy
"""


def test_transformers_is_never_imported(tmp_path: Path) -> None:
    directories = [write_model(tmp_path / files, files=files) for files in ("safetensors", "pickle")]
    subprocess.run([sys.executable, "-c", WITHOUT_TRANSFORMERS, *map(str, directories)], check=True)
