"""Files that lie about themselves: a named refusal within seconds, and no more memory than the file has."""

import json
import pickle
import resource
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open

from gptj_serve.engine.static.transformers_loader import load_model
from gptj_serve.errors import StartupError
from gptj_serve.models.config import CONFIG
from gptj_serve.models.model_dir import find_checkpoint
from support.tiny_model import TINY_CONFIG, random_tensors, write_model

CPU = torch.device("cpu")


def refusal(root: Path) -> str:
    started_s = time.monotonic()
    with pytest.raises(StartupError) as caught:
        find_checkpoint(root)
    assert time.monotonic() - started_s < 5  # on a busy machine; alone it is a tenth of that
    return str(caught.value)


# --- config.json


@pytest.mark.parametrize(
    ("key", "least", "most"),
    [
        ("n_layer", 1, 1024),
        ("n_embd", 1, 65536),
        ("n_head", 1, 1024),
        ("n_inner", 1, 262144),
        ("rotary_dim", 2, 65536),
        ("n_positions", 2, 1048576),
        ("vocab_size", 1, 1048576),
    ],
)
def test_every_whole_number_has_a_range(tmp_path: Path, key: str, least: int, most: int) -> None:
    write_model(tmp_path)
    values = [least - 1, most + 1, -5, 10**9, 10**12, 10**400, 1e6, 2.5, "28", True, [], {}, float("nan")]
    for value in values if key == "n_inner" else [*values, None]:
        (tmp_path / CONFIG).write_text(json.dumps(TINY_CONFIG | {key: value}))
        message = refusal(tmp_path)
        assert message.startswith(f"{tmp_path / CONFIG}: {key}=")
        assert message.endswith(f"must be a whole number from {least} to {most}")
        assert len(message) < 400


@pytest.mark.parametrize(
    "key", ["layer_norm_epsilon", "resid_pdrop", "embd_pdrop", "attn_pdrop", "initializer_range"]
)
def test_every_fraction_has_a_range(tmp_path: Path, key: str) -> None:
    write_model(tmp_path)
    for value in ("x", None, True, -0.1, 1.5, 1e300, float("inf"), float("nan"), []):
        (tmp_path / CONFIG).write_text(json.dumps(TINY_CONFIG | {key: value}))
        message = refusal(tmp_path)
        assert message.startswith(f"{tmp_path / CONFIG}: {key}=")
        assert "must be a number from 0.0 to 1.0" in message


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings='yes': must be true or false"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings=1: must be true or false"),
        ({"activation_function": 3}, "activation_function=3: must be a name"),
        ({"architectures": "GPTJForCausalLM"}, "architectures='GPTJForCausalLM': must be a list of names"),
        ({"architectures": [1]}, "architectures=[1]: must be a list of names"),
    ],
)
def test_other_fields(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    write_model(tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps(TINY_CONFIG | changes))
    assert refusal(tmp_path).startswith(f"{tmp_path / CONFIG}: {told}")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"activation_function": "swish2"}, "activation_function='swish2': must be one of "),
        ({"use_cache": "x"}, "Transformers does not take it: Validation error for field 'use_cache'"),
        ({"bos_token_id": "x"}, "Transformers does not take it: Validation error for field 'bos_token_id'"),
        ({"dtype": "float13"}, "Transformers does not take it: "),
    ],
)
def test_what_transformers_alone_refuses_is_named(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    write_model(tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps(TINY_CONFIG | changes))
    with pytest.raises(StartupError) as caught:
        load_model(find_checkpoint(tmp_path), CPU, torch.float32)
    assert str(caught.value).startswith(f"{tmp_path / CONFIG}: {told}")
    assert "\n" not in str(caught.value)


def test_the_largest_that_is_allowed_is_looked_at_in_time(tmp_path: Path) -> None:
    write_model(tmp_path)
    large = {"n_layer": 1024, "n_embd": 65536, "n_head": 512, "vocab_size": 1048576, "n_positions": 1048576}
    (tmp_path / CONFIG).write_text(json.dumps(TINY_CONFIG | large))
    assert "the weights do not fit config.json" in refusal(tmp_path)


# --- safetensors


def write_header(path: Path, entries: dict[str, Any], num_bytes: int) -> None:
    header = json.dumps(entries).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(num_bytes))


def moved(change: Callable[[list[tuple[int, int]]], None]) -> Callable[[Path], None]:
    """Rewrite where a whole model's tensors are said to be, in the order of the file."""

    def build(path: Path) -> None:
        content = path.read_bytes()
        header_bytes = int.from_bytes(content[:8], "little")
        entries = json.loads(content[8 : 8 + header_bytes])
        names = sorted(
            (name for name in entries if name != "__metadata__"),
            key=lambda name: entries[name]["data_offsets"],
        )
        places = [tuple(entries[name]["data_offsets"]) for name in names]
        change(places)
        for name, place in zip(names, places, strict=True):
            entries[name]["data_offsets"] = list(place)
        end = max(end for _, end in places)
        write_header(path, entries, end)

    return build


def overlap(places: list[tuple[int, int]]) -> None:
    begin, end = places[1]
    places[1] = (begin - 4, end - 4)


def same_place(places: list[tuple[int, int]]) -> None:
    """Two tensors of one size share their numbers: the file is shorter than its tensors."""
    sizes = [end - begin for begin, end in places]
    twin = next(index for index in range(1, len(sizes)) if sizes[index] == sizes[index - 1])
    places[twin] = places[twin - 1]


def hole(places: list[tuple[int, int]]) -> None:
    begin, end = places[-1]
    places[-1] = (begin + 8, end + 8)


def late(places: list[tuple[int, int]]) -> None:
    places[:] = [(begin + 4, end + 4) for begin, end in places]


@pytest.mark.parametrize("change", [overlap, same_place, hole, late])
def test_places_as_the_formats_own_library_takes_them(
    tmp_path: Path, change: Callable[[list[tuple[int, int]]], None]
) -> None:
    path = write_model(tmp_path) / "model.safetensors"
    moved(list.sort)(path)
    find_checkpoint(tmp_path)
    moved(change)(path)
    with pytest.raises(SafetensorError), safe_open(path, "pt"):
        pass
    message = refusal(tmp_path)
    assert message.startswith(f"{path}: the safetensors header is corrupt: ")
    assert "overlaps the tensor" in message or "leaves a hole" in message


@pytest.mark.parametrize("metadata", [{"a": 1}, {"a": None}, [], "x"])
def test_metadata_that_is_no_text(tmp_path: Path, metadata: Any) -> None:
    path = write_model(tmp_path) / "model.safetensors"
    content = path.read_bytes()
    header_bytes = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8 : 8 + header_bytes]) | {"__metadata__": metadata}
    write_header(path, entries, len(content) - 8 - header_bytes)
    with pytest.raises(SafetensorError), safe_open(path, "pt"):
        pass
    assert "the safetensors header is corrupt" in refusal(tmp_path)


# --- pickles


def repack(path: Path, change: Callable[[str, bytes], bytes], compression: int) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, change(name, content))


def test_a_compressed_pickle_is_not_unpacked(tmp_path: Path) -> None:
    """PyTorch compresses nothing, and would unpack this one in memory, pickle and numbers."""
    path = write_model(tmp_path, files="pickle") / "pytorch_model.bin"
    repack(path, lambda _, content: content, zipfile.ZIP_DEFLATED)
    assert refusal(tmp_path).startswith(f"{path}: refused: its ")


INFLATE = """
import json, resource, sys
from pathlib import Path
import torch
from gptj_serve.errors import StartupError
from gptj_serve.models.model_dir import find_checkpoint
def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000
for name in sys.argv[1:]:
    before, said = peak_mb(), None
    try:
        find_checkpoint(Path(name))
    except StartupError as error:
        said = str(error)
    print(json.dumps([said, peak_mb() - before]))
"""


def inflating_zip(path: Path) -> None:
    """100 KB that become 100 MB."""
    more = bytes(100_000_000)
    repack(path, lambda name, old: old + more * name.endswith("data.pkl"), zipfile.ZIP_DEFLATED)


def copying_pickle(path: Path) -> None:
    """A stored pickle that asks for copies of its one long text: 4 GB from 1 MB."""
    text, coding = b"a" * 1_000_000, b"utf-32"
    copy = [pickle.BINGET, b"\x00", pickle.BINGET, b"\x01"]
    copy += [pickle.BINUNICODE, len(coding).to_bytes(4, "little"), coding, pickle.TUPLE2, pickle.REDUCE]
    script = [pickle.PROTO, b"\x02", pickle.EMPTY_LIST, pickle.MARK]
    script += [pickle.GLOBAL, b"_codecs\nencode\n", pickle.BINPUT, b"\x00"]
    script += [pickle.BINUNICODE, len(text).to_bytes(4, "little"), text, pickle.BINPUT, b"\x01"]
    script += [*copy * 1000, pickle.APPENDS, pickle.STOP]
    hostile = b"".join(script)
    repack(path, lambda name, old: hostile if name.endswith("data.pkl") else old, zipfile.ZIP_STORED)


def test_pickles_that_inflate(tmp_path: Path) -> None:
    attacks = {inflating_zip: 50, copying_pickle: 700}  # megabytes at most
    paths = [
        write_model(tmp_path / attack.__name__, files="pickle") / "pytorch_model.bin" for attack in attacks
    ]
    for attack, path in zip(attacks, paths, strict=True):
        attack(path)
        assert path.stat().st_size < 3_000_000
    command = [sys.executable, "-c", INFLATE, *(str(path.parent) for path in paths)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    outcomes = map(json.loads, done.stdout.splitlines())
    for path, most_mb, (message, more_mb) in zip(paths, attacks.values(), outcomes, strict=True):
        assert message.startswith(f"{path}: refused: it")
        assert "memory" in message
        assert more_mb < most_mb


def test_the_bound_on_memory_is_gone_afterwards(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    find_checkpoint(write_model(tmp_path, files="pickle"))
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_numbers_that_a_file_of_before_1_6_does_not_have(tmp_path: Path) -> None:
    path = write_model(tmp_path, files="pickle") / "pytorch_model.bin"
    tensors = random_tensors(TINY_CONFIG, torch.float32) | {"more": torch.zeros(10_000_000)}
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    with path.open("r+b") as file:
        file.truncate(200_000)
    assert refusal(tmp_path).startswith(f"{path}: expected more than 4")


def test_entries_that_are_no_tensors_of_ours(tmp_path: Path) -> None:
    """Sparse and quantised ones have shapes too."""
    path = write_model(tmp_path, files="pickle") / "pytorch_model.bin"
    tensors = random_tensors(TINY_CONFIG, torch.float32)
    name = "transformer.wte.weight"
    torch.save(tensors | {name: tensors[name].to_sparse()}, path)
    assert f"{name} is [100, 32] of no float type" in refusal(tmp_path)
