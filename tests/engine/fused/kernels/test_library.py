"""Finding, compiling and caching the kernel library: with a script in nvcc's place, and with nvcc itself."""

import ctypes
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gptj_serve.engine.fused.kernels import cuda as cuda_kernels
from gptj_serve.engine.fused.kernels import library as compiler
from gptj_serve.errors import StartupError
from support.server import ROOT

FAKE_NVCC = """#!/bin/sh
if [ "$1" = --version ]; then echo "release $FAKE_RELEASE"; exit; fi
printf '%s\\n' "$@" > "$FAKE_RECORD"
while [ "$1" != -o ]; do shift; done
printf half > "$2"
ls "$FAKE_CACHE" > "$FAKE_RECORD.during"
if [ -n "$FAKE_FAILURE" ]; then echo "$FAKE_FAILURE" >&2; exit 2; fi
printf 'whole' >> "$2"
"""


class Machine:
    """A CUDA installation whose nvcc is a script, and a cache."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sources = folder / "csrc"
        self.cache = folder / "cache" / "gptj-serve"
        self.record = folder / "record"
        self.nvcc = folder / "cuda" / "bin" / "nvcc"
        self.sources.mkdir()
        self.cache.mkdir(parents=True)
        self.nvcc.parent.mkdir(parents=True)
        (self.sources / "fused.cu").write_text("one")
        self.nvcc.write_text(FAKE_NVCC)
        self.nvcc.chmod(0o755)
        tools = folder / "tools"
        tools.mkdir()
        self.gxx = tools / "g++"
        self.gxx.touch(0o755)
        self.env = {
            "CUDA_HOME": str(folder / "cuda"),
            "PATH": str(tools),
            "XDG_CACHE_HOME": str(folder / "cache"),
        }
        monkeypatch.setattr(compiler, "SOURCES", self.sources)
        monkeypatch.setattr(compiler, "PREBUILT", folder / "libfused.so")
        monkeypatch.setattr(compiler, "DEFAULT_CUDA", folder / "no-cuda")
        for name, value in {
            "RECORD": self.record,
            "CACHE": self.cache,
            "RELEASE": "13.0",
            "FAILURE": "",
        }.items():
            monkeypatch.setenv(f"FAKE_{name}", str(value))

    def find(self, *architectures: str) -> Path:
        return compiler.find_library(self.env, architectures or ("9.0",))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def origins(log: pytest.LogCaptureFixture) -> list[str]:
    return [record.fields["origin"] for record in log.records if hasattr(record, "fields")]


def test_the_library_takes_no_modules_place() -> None:
    """Python looks for NAME.so before NAME.py."""
    module, *_ = compiler.PREBUILT.name.split(".")
    assert not compiler.PREBUILT.with_name(f"{module}.py").exists()


class TestFinding:
    def test_it_is_compiled_once(self, machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        library = machine.find()
        assert library.parent == machine.cache
        assert library.read_text() == "halfwhole"
        machine.record.unlink()
        assert machine.find() == library
        assert not machine.record.exists()
        assert origins(caplog) == ["compiled", "cached"]

    def test_a_prebuilt_one_is_taken_without_a_compiler(
        self, machine: Machine, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        compiler.PREBUILT.touch()
        machine.nvcc.unlink()
        assert machine.find() == compiler.PREBUILT
        assert compiler.kernels_missing(machine.env) is None
        assert origins(caplog) == ["prebuilt"]

    def test_another_architecture_is_another_library(self, machine: Machine) -> None:
        assert (
            len({machine.find("9.0"), machine.find("7.5"), machine.find("9.0+PTX"), machine.find("9.0")}) == 3
        )

    def test_changed_sources_and_compilers_are_noticed(
        self, machine: Machine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = [machine.find()]
        (machine.sources / "fused.cu").write_text("two")
        found.append(machine.find())
        (machine.sources / "more.cuh").touch()
        found.append(machine.find())
        (machine.sources / "more.cuh").rename(machine.sources / "other.cuh")
        found.append(machine.find())
        monkeypatch.setenv("FAKE_RELEASE", "13.1")
        found.append(machine.find())
        assert len(set(found)) == len(found)

    def test_without_a_cache_named_it_is_the_homes(
        self, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        del machine.env["XDG_CACHE_HOME"]
        assert machine.find().parent == tmp_path / "home" / ".cache" / "gptj-serve"

    def test_nvcc_is_looked_for_in_cuda_home_on_the_path_and_where_it_is_installed(
        self, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        on_path = machine.gxx.with_name("nvcc")
        on_path.touch(0o755)
        assert compiler.find_nvcc(machine.env) == str(machine.nvcc)
        assert compiler.find_nvcc({"PATH": machine.env["PATH"]}) == str(on_path)
        monkeypatch.setattr(compiler, "DEFAULT_CUDA", tmp_path / "cuda")
        assert compiler.find_nvcc({"PATH": "/nowhere"}) == str(machine.nvcc)
        assert compiler.find_nvcc({"PATH": "/nowhere", "CUDA_PATH": str(on_path.parent)}) == str(machine.nvcc)


class TestMissing:
    def test_nothing(self, machine: Machine) -> None:
        assert compiler.kernels_missing(machine.env) is None

    def test_nvcc(self, machine: Machine) -> None:
        machine.nvcc.unlink()
        why = "they are not prebuilt, and nvcc to build them is not there"
        assert compiler.kernels_missing(machine.env) == why
        with pytest.raises(StartupError, match=f"^the fused engine's kernels are not there: {why}$"):
            machine.find()

    def test_the_cpp_compiler_that_nvcc_calls(self, machine: Machine) -> None:
        machine.gxx.unlink()
        why = "they are not prebuilt, and g++ to build them is not there"
        assert compiler.kernels_missing(machine.env) == why
        assert compiler.kernels_missing({**machine.env, "NVCC_CCBIN": "clang++"}) is None
        with pytest.raises(StartupError, match=re.escape("g++ to build them is not there")):
            machine.find()

    def test_both(self, machine: Machine) -> None:
        machine.nvcc.unlink()
        machine.gxx.unlink()
        assert "nvcc and g++" in str(compiler.kernels_missing(machine.env))


class TestCompiling:
    def test_what_nvcc_is_told(self, machine: Machine) -> None:
        machine.find("7.5", "8.6", "12.0+PTX")
        told = machine.record.read_text().splitlines()
        codes = [told[at + 1] for at, option in enumerate(told) if option == "-gencode"]
        assert codes == [
            "arch=compute_75,code=sm_75",
            "arch=compute_86,code=sm_86",
            "arch=compute_120,code=sm_120",
            "arch=compute_120,code=compute_120",
        ]
        assert told[-1] == str(machine.sources / "fused.cu")
        assert {"-shared", "-std=c++17", "-fPIC,-fvisibility=hidden"} <= set(told)
        assert told[told.index("-cudart") + 1] == "static"

    def test_it_appears_whole_and_leaves_nothing_behind(self, machine: Machine) -> None:
        library = machine.find()
        during = Path(f"{machine.record}.during").read_text().split()
        assert library.name not in during
        assert list(machine.cache.iterdir()) == [library]

    def test_a_failure_names_architecture_and_way_out_and_caches_nothing(
        self, machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("FAKE_FAILURE", "fused.cu(1): error: no such thing")
        with pytest.raises(StartupError) as refused:
            machine.find("7.5", "9.0")
        assert "do not compile for 7.5, 9.0" in str(refused.value)
        assert str(machine.nvcc) in str(refused.value)
        assert "GPTJ_ENGINE=deepspeed or hf" in str(refused.value)
        assert "no such thing" in caplog.text
        assert list(machine.cache.iterdir()) == []

    def test_a_cache_that_cannot_be_made_is_named(self, machine: Machine, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        machine.env["XDG_CACHE_HOME"] = str(tmp_path / "file")
        with pytest.raises(
            StartupError, match=r"cannot be compiled into .*file/gptj-serve: .*XDG_CACHE_HOME"
        ):
            machine.find()

    @pytest.mark.parametrize("name", ["", "9", "90", "sm_90", "9.0a", "9.0+ptx", "Hopper", "9.0;7.5"])
    def test_what_is_no_architecture_is_refused(self, machine: Machine, name: str) -> None:
        with pytest.raises(ValueError, match=re.escape(repr(name))):
            machine.find(name)
        assert not machine.record.exists()
        assert list(machine.cache.iterdir()) == []


class TestAheadOfTime:
    """What an image's build runs."""

    @pytest.fixture(autouse=True)
    def environment(self, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in machine.env.items():
            monkeypatch.setenv(name, value if name != "PATH" else f"{value}:{os.environ['PATH']}")

    def test_every_architecture_is_in_the_package(
        self, machine: Machine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("KERNEL_ARCHS", "7.0;7.5, 8.0  9.0+PTX")
        compiler.main()
        assert compiler.PREBUILT.read_text() == "halfwhole"
        compiled_for = re.findall("code=(.*)", machine.record.read_text())
        assert compiled_for == ["sm_70", "sm_75", "sm_80", "sm_90", "compute_90"]

    @pytest.mark.parametrize(
        ("archs", "failure", "said"), [("9.0", "broken", "do not compile"), ("9", "", "'9'")]
    )
    def test_a_failure_is_one_line_and_an_exit_code(
        self, monkeypatch: pytest.MonkeyPatch, archs: str, failure: str, said: str
    ) -> None:
        monkeypatch.setenv("KERNEL_ARCHS", archs)
        monkeypatch.setenv("FAKE_FAILURE", failure)
        with pytest.raises(SystemExit, match=said):
            compiler.main()
        assert not compiler.PREBUILT.exists()

    def test_it_needs_nothing_but_the_files_that_the_image_copies_first(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("KERNEL_ARCHS", "9.0")
        dockerfile = (ROOT / "Dockerfile").read_text()
        copies = re.findall(r"^COPY (code/\S+(?: code/\S+)*) code/", dockerfile, re.MULTILINE)
        for name in " ".join(copies).split():
            to = tmp_path / name
            to.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-r", str(ROOT / name), str(to)], check=True)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "code"))
        # without site: an installed package would be found before these few files
        command = [sys.executable, "-S", "-m", "gptj_serve.engine.fused.kernels.library"]
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        assert (tmp_path / "code/gptj_serve/engine/fused/kernels/libfused.so").read_text() == "halfwhole"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library as nvcc makes it; no GPU is needed."""
    nvcc = compiler.find_nvcc(os.environ)
    if nvcc is None:
        pytest.skip("there is no nvcc")
    library = tmp_path_factory.mktemp("kernels") / "libfused.so"
    compiler.compile_library(nvcc, ["7.5"], library)
    return library


class TestForReal:
    def test_it_has_every_function_and_the_structures_that_are_expected(self, library: Path) -> None:
        functions = cuda_kernels.open_library(library)
        assert functions.fused_error(0) == b"no error"

    def test_other_structures_are_refused(self, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Model(ctypes.Structure):
            _fields_ = (*cuda_kernels._Model._fields_, ("another", ctypes.c_void_p))

        monkeypatch.setattr(cuda_kernels, "_Model", Model)
        with pytest.raises(RuntimeError, match="structures have sizes"):
            cuda_kernels.open_library(library)

    def test_a_function_that_is_not_there_is_named(
        self, library: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cuda_kernels, "_ARGUMENTS", {"other": ()})
        with pytest.raises(RuntimeError, match=r"lacks a function: .*fused_other"):
            cuda_kernels.open_library(library)
