"""What is in the image, and what is not."""

import json
import re
import shutil
import time
from pathlib import Path

import pytest

import gptj_serve
from gptj_serve.aws.image.source_tree import read_source
from support.container import build, docker, layers, run_in
from support.server import ROOT

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]


def test_how_it_is_started(image: str) -> None:
    config = json.loads(docker("image", "inspect", "--format", "{{json .Config}}", image))
    assert config["Entrypoint"] == ["serve"]
    assert not config.get("Cmd")
    assert config["ExposedPorts"] == {"8080/tcp": {}}
    assert config["Healthcheck"]["Test"] == ["CMD", "sh", "-c", "cd / && exec python -m gptj_serve.health"]
    assert config["Labels"]["com.amazonaws.sagemaker.capabilities.accept-bind-to-port"] == "true"
    assert config["Labels"]["org.opencontainers.image.title"] == "gptj-serve"
    assert config["Labels"]["org.opencontainers.image.version"] == gptj_serve.__version__
    source = read_source()
    assert config["Labels"]["org.opencontainers.image.revision"] == (source.revision or "")
    assert re.fullmatch(
        r"\d{4}(-\d\d){2}T\d\d(:\d\d){2}Z", config["Labels"]["org.opencontainers.image.created"]
    )


def test_pytorch_is_the_base_images_own(image: str, base_image: str) -> None:
    code = "import torch; print(torch.__file__, torch.__version__, torch.version.git_version)"
    assert run_in(image, "python", "-c", code) == run_in(base_image, "python", "-c", code)


def test_what_it_does_not_contain(image: str) -> None:
    for program in ("cc", "gcc", "g++", "c++", "nvcc", "git"):
        assert run_in(image, "sh", "-c", f"command -v {program} || echo none") == "none\n"
    large = run_in(
        image, "sh", "-c", "find / -xdev -name '*.safetensors' -o -xdev -name 'pytorch_model*.bin'"
    )
    assert [Path(line).parts[-4:] for line in large.split()] == [
        ("gptj_serve", "demo", "model", "model.safetensors")
    ]
    caches = "find / -xdev -path '*/.cache/*' -o -xdev -name wheels -o -path '/tmp/*'"
    # PyTorch's own import leaves an empty folder
    assert set(run_in(image, "sh", "-c", caches).split()) <= {"/tmp/torchinductor_root"}
    assert run_in(image, "sh", "-c", "find /opt/gptj-serve -name 'test*' -o -name '.git*'") == ""


def test_it_has_the_fused_engines_sources_and_without_cuda_no_kernels(image: str) -> None:
    folder = "/opt/gptj-serve/gptj_serve/engine/fused/kernels"
    sources = ROOT / "code" / "gptj_serve" / "engine" / "fused" / "kernels" / "csrc"
    assert run_in(image, "ls", f"{folder}/csrc").split() == sorted(path.name for path in sources.iterdir())
    assert run_in(image, "sh", "-c", f"ls {folder} | grep '[.]so$' || echo none") == "none\n"
    said = run_in(image, "python", "-m", "gptj_serve.self_check")
    assert "PyTorch has no CUDA: there are no kernels" in said


def test_layers_hold_no_file_of_the_build_stage(image: str, base_image: str) -> None:
    ours = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", image).splitlines()
    theirs = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", base_image).splitlines()
    added = ours[: len(ours) - len(theirs)]
    assert layers(image)[: len(layers(base_image))] == layers(base_image)
    assert not [line for line in added if "pip install" in line]


def test_the_context_is_small(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    docker(
        "build", "--quiet", "--tag", "gptj-serve:context", "--file", str(tmp_path / "Dockerfile"), str(ROOT)
    )
    size = int(docker("image", "inspect", "--format", "{{.Size}}", "gptj-serve:context"))
    docker("rmi", "gptj-serve:context")
    assert size < 15e6  # 10 MB of it the demo model


def test_a_change_in_the_code_rebuilds_the_last_layers_only(image: str, tmp_path: Path) -> None:
    context = tmp_path / "context"
    ignored = shutil.ignore_patterns(".git", ".venv*", "__pycache__", ".*_cache", "*.egg-info")
    shutil.copytree(ROOT, context, ignore=ignored)
    module = context / "code" / "gptj_serve" / "__init__.py"
    module.write_text(module.read_text() + "\n# changed\n")
    started_s = time.monotonic()
    build("gptj-serve:changed", context=context)
    print(f"rebuilt in {time.monotonic() - started_s:.1f} s")
    # the package, `serve` and the check's traces come after the dependencies
    assert 1 <= num_changed(image, "gptj-serve:changed") <= 3
    # in the build stage, the code and its installation come after the kernels
    stages = [
        build(f"gptj-serve:build-{number}", "--target", "build", context=of)
        for number, of in enumerate([ROOT, context])
    ]
    assert num_changed(*stages) == 2
    docker("rmi", "gptj-serve:changed", *stages)


def num_changed(image: str, other: str) -> int:
    """Layers of one image that another does not have at the same place."""
    return sum(one != two for one, two in zip(layers(image), layers(other), strict=True))


def test_kernels_that_do_not_build_fail_the_image(base_image: str, tmp_path: Path) -> None:
    """A base whose PyTorch has CUDA, but that has nothing to build kernels with."""
    with_cuda = "gptj-serve:base-without-nvcc"
    find = "$(python -c 'import torch.version; print(torch.version.__file__)')"
    (tmp_path / "Dockerfile").write_text(f"FROM {base_image}\nRUN echo \"cuda = '12.6'\" >> {find}\n")
    docker("build", "--quiet", "--tag", with_cuda, str(tmp_path))
    try:
        with pytest.raises(AssertionError, match=r"has CUDA 12\.6, but there is no nvcc"):
            build("gptj-serve:must-not-be", "--build-arg", f"BUILD_IMAGE={with_cuda}")
    finally:
        docker("rmi", with_cuda)
