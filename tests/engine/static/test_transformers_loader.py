"""Loading: right values, no second copy, nothing initialised for nothing, clear refusals."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers.models.gptj.modeling_gptj import create_sinusoidal_positions

from gptj_serve.engine import memory
from gptj_serve.engine.memory import (
    GpuMemory,
    HostMemory,
    check_gpu_memory,
    check_host_memory,
    host_memory,
)
from gptj_serve.engine.static import transformers_loader as loader
from gptj_serve.engine.static.transformers_loader import load_model, needed_bytes
from gptj_serve.errors import StartupError
from gptj_serve.models.families import read_architecture, shapes_of
from gptj_serve.models.model_dir import find_checkpoint
from support.tiny_model import TINY_CONFIG, random_tensors, write_model

CPU = torch.device("cpu")
LARGE = {"n_layer": 2, "n_embd": 1280, "n_head": 10, "rotary_dim": 64, "vocab_size": 12000}


@pytest.mark.parametrize("files", ["safetensors", "sharded safetensors", "pickle", "sharded pickle"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_loads_every_weight(tmp_path: Path, files: str, dtype: torch.dtype) -> None:
    write_model(tmp_path, files=files, dtype=torch.float16)
    model = load_model(find_checkpoint(tmp_path), CPU, dtype)
    loaded = model.state_dict()
    tensors = random_tensors(TINY_CONFIG, torch.float16)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == dtype
        assert torch.equal(loaded[name], tensor.to(dtype)), name
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_rotary_tables_stay_exact_in_fp16(tmp_path: Path) -> None:
    """Transformers computes them once more after loading; in float16 they would be useless."""
    model = load_model(find_checkpoint(write_model(tmp_path)), CPU, torch.float16)
    for block in model.transformer.h:
        assert block.attn.embed_positions.dtype == torch.float32
        assert torch.equal(block.attn.embed_positions, create_sinusoidal_positions(64, 4))


def test_names_without_the_prefix_are_loaded(tmp_path: Path) -> None:
    tensors = random_tensors(TINY_CONFIG, torch.float32)
    write_model(tmp_path, tensors={name.removeprefix("transformer."): t for name, t in tensors.items()})
    loaded = load_model(find_checkpoint(tmp_path), CPU, torch.float32).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_tied_embeddings_are_loaded(tmp_path: Path) -> None:
    tensors = random_tensors(TINY_CONFIG, torch.float32)
    del tensors["lm_head.weight"]
    write_model(tmp_path, tensors=tensors, tie_word_embeddings=True)
    model = load_model(find_checkpoint(tmp_path), CPU, torch.float32)
    assert torch.equal(model.lm_head.weight, tensors["transformer.wte.weight"])


def test_no_weight_is_initialised_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random numbers for six billion weights take minutes; only the rotary tables may be computed."""
    checkpoint = find_checkpoint(write_model(tmp_path))
    names = [name for name in vars(torch.nn.init) if name.endswith("_") and not name.startswith("_")]
    assert "normal_" in names
    filled: list[torch.device] = []
    for name in names:
        monkeypatch.setattr(
            torch.nn.init, name, lambda tensor, *_, **__: filled.append(tensor.device) or tensor
        )
    for name in ("normal_", "uniform_"):
        original = getattr(torch.Tensor, name)

        def watched(tensor: torch.Tensor, *args: float, _original=original, **kwargs: float) -> torch.Tensor:  # type: ignore[no-untyped-def]
            filled.append(tensor.device)
            return _original(tensor, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, watched)
    load_model(checkpoint, CPU, torch.float32)
    assert [device for device in filled if device.type != "meta"] == []


def test_a_weight_that_vanished_after_the_check(tmp_path: Path) -> None:
    checkpoint = find_checkpoint(write_model(tmp_path))
    tensors = random_tensors(TINY_CONFIG, torch.float32)
    del tensors["lm_head.bias"]
    write_model(tmp_path, tensors=tensors)
    with pytest.raises(StartupError, match=r"changed since it was checked: lm_head\.bias"):
        load_model(checkpoint, CPU, torch.float32)


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_became_malicious_after_the_check_runs_nothing(tmp_path: Path) -> None:
    checkpoint = find_checkpoint(write_model(tmp_path / "model", files="pickle"))
    trace = tmp_path / "code_was_run"
    tensors = {**random_tensors(TINY_CONFIG, torch.float16), "lm_head.bias": Malicious(trace)}
    torch.save(tensors, tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(StartupError, match="changed since it was checked"):
        load_model(checkpoint, CPU, torch.float32)
    assert not trace.exists()


MEASURE = """
import json, sys, threading, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from gptj_serve.engine.static.transformers_loader import load_model
from gptj_serve.models.model_dir import find_checkpoint

def resident():
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return [int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "VmRSS")]

def load(directory, dtype):
    checkpoint = find_checkpoint(Path(directory))
    before, samples, done = resident(), [], threading.Event()
    def watch():
        while not done.is_set():
            samples.append(resident())
            time.sleep(0.001)
    watcher = threading.Thread(target=watch)
    watcher.start()
    model = load_model(checkpoint, torch.device("cpu"), dtype)
    done.set()
    watcher.join()
    samples.append(resident())
    return [max(values) - start for values, start in zip(zip(*samples), before)]

tiny, *large = sys.argv[1:]
load(tiny, torch.float32)  # imports and first-call work
print(json.dumps([[load(one, dtype) for dtype in (torch.float16, torch.float32)] for one in large]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_never_two_copies_in_memory(tmp_path: Path) -> None:
    """A 140 MB checkpoint: as FP16 it is only mapped; as FP32 there is the one converted copy."""
    shapes = shapes_of(read_architecture({"model_type": "gptj", **_dims(LARGE)}, Path("config.json")))
    tensors = {name: torch.zeros(shape, dtype=torch.float16) for name, shape in shapes.items()}
    fp16_bytes = sum(tensor.nbytes for tensor in tensors.values())
    assert fp16_bytes > 130e6
    directories = [write_model(tmp_path / "tiny")] + [
        write_model(tmp_path / files, files=files, tensors=tensors, **LARGE)
        for files in ("safetensors", "pickle")
    ]
    command = [sys.executable, "-c", MEASURE, *map(str, directories)]
    measured = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    shutil.rmtree(tmp_path)
    for (fp16_anonymous, _), (fp32_anonymous, fp32_resident) in measured:
        assert fp16_anonymous < 0.1 * fp16_bytes
        assert 1.8 * fp16_bytes < fp32_anonymous < 2.2 * fp16_bytes
        # with the pages of the mapped file, which the kernel takes back when it needs them
        assert fp32_resident < 3.3 * fp16_bytes


def _dims(config: dict[str, int]) -> dict[str, int]:
    return {"n_inner": 4 * config["n_embd"], "n_positions": 64, "tie_word_embeddings": False, **config}


def test_logs_one_record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = find_checkpoint(write_model(tmp_path))
    with caplog.at_level(logging.INFO, logger="gptj_serve"):
        load_model(checkpoint, CPU, torch.float32)
    (record,) = [record for record in caplog.records if record.name == loader.__name__]
    fields = record.fields  # type: ignore[attr-defined]
    assert fields["event"] == "model_loaded"
    assert fields["device_bytes"] == needed_bytes(checkpoint, torch.float32)
    assert 0 < fields["seconds"] < 60
    assert 50e6 < fields["host_peak_bytes"] < 50e9


GIB = 1 << 30


def test_gpu_memory_that_suffices() -> None:
    check_gpu_memory(10, GpuMemory("a GPU", 10, 20))


def test_gpu_memory_that_does_not() -> None:
    with pytest.raises(StartupError) as caught:
        check_gpu_memory(int(11.3 * GIB), GpuMemory("Tesla T4", 11 * GIB, int(14.6 * GIB)))
    message = str(caught.value)
    assert message.startswith("Tesla T4 has too little free memory: the weights need 11.30 GiB, ")
    assert "11.00 GiB of 14.60 GiB are free" in message


def test_host_memory_that_suffices() -> None:
    check_host_memory({"weights": 6, "cache": 4}, HostMemory(10, 20, None))
    check_host_memory({"weights": 10}, HostMemory(10, 20, 10))
    check_host_memory({}, HostMemory(0, 20, None))


def test_a_containers_memory() -> None:
    with pytest.raises(StartupError) as caught:
        check_host_memory({"weights": 23 * GIB}, HostMemory(60 * GIB, 64 * GIB, 16 * GIB))
    message = str(caught.value)
    assert "needs 23.00 GiB of memory (weights 23.00), and this container may use 16.00" in message
    assert "docker run --memory" in message


@pytest.mark.parametrize("limit", [None, 30 * GIB])
def test_what_a_machine_has_left(limit: int | None) -> None:
    """Outside a container, or inside one whose limit is more than there is."""
    needs = {"weights 6050882784 * 4 bytes =": 4 * 6_050_882_784, "rotary tables": GIB}
    with pytest.raises(StartupError) as caught:
        check_host_memory(needs, HostMemory(22 * GIB, 24 * GIB, limit))
    message = str(caught.value)
    assert "needs 23.54 GiB of memory (weights 6050882784 * 4 bytes = 22.54 + rotary tables 1.00)" in message
    assert "22.00 of the machine's 24.00 are free" in message


def test_the_page_cache_is_no_used_memory() -> None:
    there, said = host_memory(), Path("/proc/meminfo").read_text()
    available = int(re.findall(r"MemAvailable: +(\d+) kB", said)[0]) * 1024
    assert there.available_bytes == pytest.approx(available, rel=0.05)


def test_refuses_before_reading_when_the_machine_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = find_checkpoint(write_model(tmp_path))
    needed = needed_bytes(checkpoint, torch.float32)
    monkeypatch.setattr(loader, "_from_files", lambda *_: pytest.fail("loaded all the same"))
    monkeypatch.setattr(memory, "host_memory", lambda: HostMemory(needed - 1, 2 * needed, None))
    with pytest.raises(StartupError, match="loading needs"):
        load_model(checkpoint, CPU, torch.float32)


def test_memory_that_runs_out_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = find_checkpoint(write_model(tmp_path))

    def full(*_: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(loader, "_from_files", full)
    with pytest.raises(StartupError, match="loading needs"):
        load_model(checkpoint, CPU, torch.float32)


def test_needed_bytes_of_gpt_j_6b(tmp_path: Path) -> None:
    checkpoint = find_checkpoint(write_model(tmp_path))
    published = read_architecture({"model_type": "gptj"}, Path("config.json"))
    gpt_j = replace(checkpoint, architecture=published, num_weights=6_050_882_784)
    assert needed_bytes(gpt_j, torch.float16) == 2 * 6_050_882_784 + 28 * 2048 * 64 * 4


def test_refuses_before_reading_when_the_gpu_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = find_checkpoint(write_model(tmp_path))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 2000))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    monkeypatch.setattr(loader, "_from_files", lambda *_: pytest.fail("loaded all the same"))
    with pytest.raises(StartupError, match="a GPU has too little free memory"):
        load_model(checkpoint, torch.device("cuda"), torch.float16)


def test_out_of_memory_while_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = find_checkpoint(write_model(tmp_path))
    free = iter([GIB, 0])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (next(free), GIB))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(loader, "_from_files", full)
    with pytest.raises(StartupError, match=r"a GPU has too little free memory: .* 0\.00 GiB of 1\.00 GiB"):
        load_model(checkpoint, torch.device("cuda"), torch.float16)


def test_other_errors_are_not_taken_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = find_checkpoint(write_model(tmp_path))

    def broken(*_: object) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(loader, "_from_files", broken)
    with pytest.raises(RuntimeError, match="something else"):
        load_model(checkpoint, CPU, torch.float32)
