"""``scripts/build`` against a fake docker: what it is called with."""

import os
import platform
import subprocess
from pathlib import Path

import pytest

from gptj_serve.aws.common.errors import CommandError
from gptj_serve.aws.image.source_tree import read_source
from support.aws.docker_engine import Engine
from support.aws.run_commands import call
from support.server import ROOT

LONG_AGO = {
    "GIT_AUTHOR_DATE": "2020-01-02T03:04:05Z",
    "GIT_COMMITTER_DATE": "2020-01-02T03:04:05Z",
    **{
        f"GIT_{who}_{what}": "nobody@localhost"
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    },
}


def build_arguments(engine: Engine) -> dict[str, str]:
    """Build arguments of the last build."""
    argv = engine.calls[-2]["argv"]
    assert argv[0] in ("build", "buildx")
    return dict(one.removeprefix("--build-arg=").split("=", 1) for one in argv if "--build-arg=" in one)


class TestBuild:
    def test_it_builds_this_tree_and_prints_the_id(self, engine: Engine) -> None:
        said = call("build", "--json", "--tag", "mine").json
        assert said["image"] == "mine"
        assert engine.names(said["image_id"]) == ["mine:latest"]
        argv = engine.calls[-2]["argv"]
        assert (argv[0], argv[-1]) == ("build", str(ROOT))
        assert set(build_arguments(engine)) == {"VERSION", "REVISION", "CREATED"}
        assert call("build").out.startswith("sha256:")

    def test_kernels_for_one_instance_type(self, engine: Engine) -> None:
        call("build", "--instance-type", "ml.g5.2xlarge", "--instance-type", "ml.g4dn.xlarge")
        assert build_arguments(engine)["KERNEL_ARCHS"] == "7.5;8.6"

    def test_kernels_and_bases_by_hand(self, engine: Engine) -> None:
        result = call(
            *("build", "--archs", "8.9, 9.0+PTX", "--base-image", "a:1", "--runtime-image", "b:1"),
            *("--build-image", "c:1", "--", "--no-cache"),
        )
        assert result.code == 0, result.err
        given = build_arguments(engine)
        assert given["KERNEL_ARCHS"] == "8.9;9.0+PTX"
        assert [given[f"{one}_IMAGE"] for one in ("BASE", "RUNTIME", "BUILD")] == ["a:1", "b:1", "c:1"]
        assert "--no-cache" in engine.calls[-2]["argv"]

    def test_buildkit_makes_what_sagemaker_takes(self, engine: Engine) -> None:
        engine.wish(buildx="ok")
        call("build")
        argv = engine.calls[-2]["argv"]
        assert argv[:4] == ["buildx", "build", "--provenance=false", "--output=type=docker"]

    def test_on_another_processor_it_builds_for_sagemakers(self, engine: Engine) -> None:
        engine.wish(arch="arm64")
        call("build")
        assert "--platform=linux/amd64" in engine.calls[-2]["argv"]

    def test_a_dry_run_builds_nothing(self, engine: Engine) -> None:
        said = call("build", "--dry-run", "--json").json
        assert said["plan"][0]["program"][:2] == ["docker", "build"]
        assert "build" not in engine.commands
        assert "docker" in call("build", "--dry-run").out

    @pytest.mark.parametrize("lack", ["command", "engine"])
    def test_a_dry_run_needs_no_engine(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch, lack: str
    ) -> None:
        if lack == "command":
            monkeypatch.setattr("shutil.which", lambda _: None)
        else:
            engine.wish(version="Cannot connect to the Docker daemon")
        result = call("build", "--dry-run", "--json")
        program = result.json["plan"][0]["program"]
        assert program[:3] == ["docker", "buildx", "build"]
        assert any(one.startswith("--platform=") for one in program) == (platform.machine() != "x86_64")
        assert "the plan is for this processor and a docker with buildx" in result.err
        assert call("build").code == 1

    def test_a_build_that_fails(self, engine: Engine) -> None:
        engine.wish(build="The command '/bin/sh -c pip' returned a non-zero code: 1")
        result = call("build")
        assert (result.code, result.out) == (1, "")
        assert "`docker build` failed with exit code 1: The command" in result.err

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("--archs", "nine"), "is not a list such as"),
            (("--archs", ";"), "is not a list such as"),
            (("--instance-type", "ml.c5.xlarge"), "has no GPU"),
            (("--instance-type", "ml.g5.nolarge"), "no such instance type"),
            (("--archs", "9.0", "--instance-type", "ml.g5.xlarge"), "not allowed with"),
        ],
    )
    def test_wrong_usage(self, engine: Engine, arguments: tuple[str, ...], said: str) -> None:
        result = call("build", *arguments)
        assert result.code == 2
        assert said in result.err
        assert engine.commands == []


class TestSource:
    @pytest.fixture
    def tree(self, tmp_path: Path) -> Path:
        """A tree with a Dockerfile, not in git."""
        (tmp_path / "tree").mkdir()
        (tmp_path / "tree" / "Dockerfile").write_text("FROM scratch\n")
        return tmp_path / "tree"

    def commit(self, tree: Path) -> str:
        """Commit all of it; returns the commit's id."""
        for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "one"]):
            subprocess.run(["git", "-C", str(tree), *command], check=True, env={**os.environ, **LONG_AGO})
        head = ["git", "-C", str(tree), "rev-parse", "HEAD"]
        return subprocess.run(head, check=True, capture_output=True, text=True).stdout.strip()

    def test_a_commit_is_the_same_whenever_it_is_built(self, tree: Path) -> None:
        commit = self.commit(tree)
        source = read_source(tree, {})
        assert (source.revision, source.created) == (commit, "2020-01-02T03:04:05Z")

    def test_changed_files_are_marked_and_made_now(self, tree: Path) -> None:
        commit = self.commit(tree)
        (tree / "new").touch()
        source = read_source(tree, {})
        assert source.revision == f"{commit}-dirty"
        assert source.created > "2026"

    def test_outside_of_git_and_inside_somebody_elses(self, tree: Path) -> None:
        assert read_source(tree, {}).revision is None
        self.commit(tree.parent)
        assert read_source(tree, {}).revision is None

    def test_a_time_that_is_given(self, tree: Path) -> None:
        assert read_source(tree, {"SOURCE_DATE_EPOCH": "86400"}).created == "1970-01-02T00:00:00Z"
        with pytest.raises(CommandError, match="SOURCE_DATE_EPOCH=noon is not a number"):
            read_source(tree, {"SOURCE_DATE_EPOCH": "noon"})

    def test_an_installed_package_is_no_tree(self, tmp_path: Path) -> None:
        with pytest.raises(CommandError, match="there is no Dockerfile"):
            read_source(tmp_path, {})
