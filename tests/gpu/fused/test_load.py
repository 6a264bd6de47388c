"""Packed weights on a GPU: every bit in its place, nothing waits that need not, and how long it takes.

The times are taken where GPTJ_6B_DIR names a model directory (`scripts/benchmark random-6b` writes one):
each load is a process of its own (`load_once.py`). They are printed, and written as JSON to the file that
LOAD_TIMES_OUT names.
"""

import ctypes
import gc
import importlib.util
import json
import mmap
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPTJForCausalLM

from gptj_serve import demo
from gptj_serve.engine.fused.weights import upload
from gptj_serve.engine.fused.weights.load import load_weights
from gptj_serve.engine.fused.weights.pack import PackedWeights
from gptj_serve.errors import StartupError
from gptj_serve.models.families import shapes_of
from gptj_serve.models.model_dir import find_checkpoint
from support.packed_weights import assert_packed
from support.tiny_model import TINY_CONFIG, random_tensors, write_model

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1200)]

MODEL_DIR = os.environ.get("GPTJ_6B_DIR")
LOAD_ONCE = Path(__file__).parents[1] / "load_once.py"
NUM_RUNS = 2
MIB = 1 << 20
DIMS = {"n_layer": 3, "n_embd": 256, "n_inner": 768, "vocab_size": 3000, "eos_token_id": 0}
FORMATS = ("safetensors", "sharded safetensors", "pickle")


def load(directory: Path, dtype: torch.dtype = torch.float16, **options: int) -> PackedWeights:
    return load_weights(find_checkpoint(directory), torch.device("cuda", 0), dtype, **options)


@pytest.mark.parametrize("files", FORMATS)
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
def test_every_tensor_lands_where_the_layout_says(tmp_path: Path, files: str, stored: torch.dtype) -> None:
    write_model(tmp_path, files=files, dtype=stored, **DIMS)
    assert_packed(load(tmp_path), random_tensors(TINY_CONFIG | DIMS, stored), torch.float16)


@pytest.mark.parametrize("chunk_bytes", [130, 1000, 4096, 100_000])
def test_chunks_of_any_size(tmp_path: Path, chunk_bytes: int) -> None:
    dims = DIMS | {"n_layer": 1, "n_embd": 64, "n_inner": 96, "vocab_size": 301}
    write_model(tmp_path, dtype=torch.float16, **dims)
    weights = load(tmp_path, chunk_bytes=chunk_bytes)
    assert_packed(weights, random_tensors(TINY_CONFIG | dims, torch.float16), torch.float16)


@pytest.mark.parametrize("stored", [torch.float16, torch.float32])
def test_a_slow_gpu_finds_the_buffers_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: torch.dtype
) -> None:
    """The readers are far ahead of the copies, which must not see what is read later."""
    put = upload.Chunk.put

    def late(chunk: upload.Chunk, buffer_N: torch.Tensor) -> None:
        torch.cuda._sleep(2_000_000)  # cycles: about a millisecond
        put(chunk, buffer_N)

    monkeypatch.setattr(upload.Chunk, "put", late)
    write_model(tmp_path, dtype=stored, **DIMS)
    weights = load(tmp_path, chunk_bytes=100_000, num_readers=2)
    assert_packed(weights, random_tensors(TINY_CONFIG | DIMS, stored), torch.float16)


def test_the_demo_model_is_what_transformers_loads() -> None:
    state = GPTJForCausalLM.from_pretrained(demo.MODEL_DIR, dtype=torch.float16).state_dict()
    assert_packed(load(demo.MODEL_DIR), state, torch.float16)


def test_tied_embeddings_share_their_memory(tmp_path: Path) -> None:
    tensors = random_tensors(TINY_CONFIG, torch.float16)
    write_model(
        tmp_path,
        tensors={name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"},
        tie_word_embeddings=True,
    )
    weights = load(tmp_path)
    assert weights.head.tensors[0].data_ptr() == weights.embedding_VD.data_ptr()
    tied = tensors | {"lm_head.weight": tensors["transformer.wte.weight"]}
    assert_packed(weights, tied, torch.float16)


def test_nothing_but_the_weights_stays_on_the_gpu(tmp_path: Path) -> None:
    write_model(tmp_path, dtype=torch.float32, **DIMS)
    torch.cuda.empty_cache()
    before_bytes, reserved_bytes = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    weights = load(tmp_path)
    allocated_bytes = torch.cuda.memory_allocated() - before_bytes
    assert weights.num_bytes <= allocated_bytes <= weights.num_bytes + 9 * 512
    # PyTorch reserves in pieces of 2 and 20 MiB
    assert torch.cuda.memory_reserved() - reserved_bytes <= allocated_bytes + 44 * MIB


@pytest.mark.filterwarnings("ignore")  # the profiler's own
def test_every_copy_to_the_gpu_is_from_pinned_memory(tmp_path: Path) -> None:
    """A copy from other memory would make its reader wait."""
    write_model(tmp_path / "model", dtype=torch.float16, **DIMS)
    checkpoint = find_checkpoint(tmp_path / "model")
    load(tmp_path / "model")
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        load_weights(checkpoint, torch.device("cuda", 0), torch.float16, chunk_bytes=MIB)
    profile.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    copies = [event for event in events if event.get("cat") == "gpu_memcpy" and "HtoD" in event["name"]]
    if not copies:
        pytest.skip("the profiler sees no copies on this machine")
    assert {event["name"] for event in copies} == {"Memcpy HtoD (Pinned -> Device)"}
    assert sum(event["args"]["bytes"] for event in copies) == 2 * checkpoint.num_weights
    assert len({event["args"]["stream"] for event in copies}) > 1


def test_a_gpu_that_is_full(tmp_path: Path) -> None:
    """The check is passed, the memory is gone a moment later; nothing stays behind."""
    write_model(tmp_path, **DIMS)
    gc.collect()  # what other tests have left would be counted as what this one gave back
    torch.cuda.empty_cache()
    before_bytes = torch.cuda.memory_allocated()
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        with pytest.raises(StartupError, match="too little free memory"):
            load(tmp_path)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    gc.collect()
    assert torch.cuda.memory_allocated() == before_bytes
    assert_packed(load(tmp_path), random_tensors(TINY_CONFIG | DIMS, torch.float32), torch.float16)


# --- GPT-J-6B


@pytest.mark.skipif(MODEL_DIR is None, reason="GPTJ_6B_DIR names no model")
def test_every_bit_of_a_large_model() -> None:
    assert run("check")["num_tensors"] == len(shapes_of(find_checkpoint(Path(str(MODEL_DIR)))))


@pytest.mark.skipif(MODEL_DIR is None, reason="GPTJ_6B_DIR names no model")
def test_loading_is_faster_than_transformers() -> None:
    times: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "cpus": os.cpu_count(), "model": MODEL_DIR}
    kinds = ["fused", "transformers"]
    if importlib.util.find_spec("accelerate"):
        kinds.append("transformers_device_map")
    paths = find_checkpoint(Path(str(MODEL_DIR))).files.paths
    for kind in kinds:
        read_all(paths)
        times[f"{kind}_warm"] = [run(kind) for _ in range(NUM_RUNS)]
    for kind in kinds:
        forget(paths)
        resident = resident_share(paths)
        # files in memory (tmpfs, /dev/shm) cannot be forgotten
        times[f"{kind}_cold"] = [run(kind) | {"resident_share": resident}] if resident < 0.1 else None
    print(json.dumps(times, indent=1))
    if out := os.environ.get("LOAD_TIMES_OUT"):
        Path(out).write_text(json.dumps(times, indent=1))
    warm = {kind: min(one["seconds"] for one in times[f"{kind}_warm"]) for kind in kinds}
    assert all(warm["fused"] < warm[kind] for kind in kinds[1:]), warm


def run(kind: str) -> dict[str, Any]:
    """What one load in a fresh process says of itself; see `load_once`."""
    command = [sys.executable, str(LOAD_ONCE), kind, str(MODEL_DIR)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=600)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def read_all(paths: tuple[Path, ...]) -> None:
    buffer = bytearray(64 * MIB)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def forget(paths: tuple[Path, ...]) -> None:
    """Take the files out of the page cache."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def resident_share(paths: tuple[Path, ...]) -> float:
    """Share of the files' pages that are in the page cache."""
    libc = ctypes.CDLL(None, use_errno=True)
    num_resident = num_pages = 0
    for path in paths:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE) as mapped:
            pages = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
            first = ctypes.c_char.from_buffer(mapped)
            result = libc.mincore(
                ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(len(mapped)), pages
            )
            del first  # the mapping cannot be closed before
            assert result == 0, os.strerror(ctypes.get_errno())
        num_resident += sum(page & 1 for page in pages)
        num_pages += len(pages)
    return num_resident / num_pages
