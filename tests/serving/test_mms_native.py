"""Where the model server's native library is mapped from."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from gptj_serve.errors import StartupError
from gptj_serve.serving import mms_native


def test_a_library_on_disk_is_used(tmp_path: Path) -> None:
    library = mms_native.extract(tmp_path)
    assert library.read_bytes()[:4] == b"\x7fELF"
    assert mms_native.java_options(tmp_path, tmp_path) == [f"-Djava.library.path={tmp_path}"]


def test_without_one_java_unpacks_it(tmp_path: Path) -> None:
    assert mms_native.java_options(tmp_path, tmp_path / "none") == []


def test_a_temporary_folder_that_maps_no_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=os.ST_NOEXEC))
    with pytest.raises(StartupError, match=rf"{tmp_path.parent} is mounted noexec.*TMPDIR"):
        mms_native.java_options(tmp_path, tmp_path / "none")
