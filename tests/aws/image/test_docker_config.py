"""The configuration that docker gets for one push."""

import json
import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from gptj_serve.aws.image.docker_config import PREFIX, private_config, remove_leftovers


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go; the user's configuration is in ``users``."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "users"))
    return temporary


def test_it_is_this_users_alone_and_gone_afterwards(folder: Path) -> None:
    with private_config("registry.example.com") as config:
        assert config.parent == folder
        assert config.stat().st_mode & 0o077 == 0
        # docker looks for a keychain of the machine where this is empty
        assert json.loads((config / "config.json").read_text())["auths"] == {"registry.example.com": {}}
    assert list(folder.iterdir()) == []


def test_it_is_gone_after_a_failure(folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt), private_config("registry.example.com"):
        raise KeyboardInterrupt
    assert list(folder.iterdir()) == []


def test_the_users_engine_is_used_and_none_of_their_credentials(tmp_path: Path) -> None:
    users = tmp_path / "users"
    (users / "contexts" / "meta").mkdir(parents=True)
    theirs = {"currentContext": "desktop", "credsStore": "keychain", "auths": {"other": {"auth": "c2VjcmV0"}}}
    (users / "config.json").write_text(json.dumps(theirs))
    with private_config("registry.example.com") as config:
        written = json.loads((config / "config.json").read_text())
        assert written == {"auths": {"registry.example.com": {}}, "currentContext": "desktop"}
        assert (config / "contexts" / "meta").is_dir()
    assert (users / "contexts" / "meta").is_dir()
    assert json.loads((users / "config.json").read_text()) == theirs


def test_a_configuration_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    (tmp_path / "users").mkdir()
    (tmp_path / "users" / "config.json").write_text("{nonsense")
    with private_config("registry.example.com") as config:
        assert "currentContext" not in json.loads((config / "config.json").read_text())


def test_what_a_killed_process_left_is_removed_and_a_running_ones_is_not(folder: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    (folder / f"{PREFIX}{ended.pid}-a").mkdir()
    running = folder / f"{PREFIX}{os.getppid()}-b"
    running.mkdir()
    remove_leftovers()
    assert list(folder.iterdir()) == [running]
