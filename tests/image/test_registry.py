"""The image goes to a real registry through a real engine, and comes back the same."""

import base64
import contextlib
import json
import os
import signal
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gptj_serve.aws.common.clients import Aws
from gptj_serve.aws.common.console import Console
from gptj_serve.aws.image.docker import Docker
from gptj_serve.aws.image.repository import MEDIA_TYPES
from gptj_serve.aws.image.upload import ImagePush, content_tag, send_to_ecr
from support.aws.run_commands import command, finish, start
from support.container import docker, layers, run_in
from support.image_registry import PASSWORD, USER, Registry

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[str]:
    """An image that no registry has, of one layer that takes a moment to send."""
    name = f"gptj-serve-test-{uuid.uuid4().hex[:8]}"
    (tmp_path / "context").mkdir()
    (tmp_path / "context" / "random").write_bytes(os.urandom(100_000_000))
    (tmp_path / "context" / "Dockerfile").write_text("FROM scratch\nCOPY random /\n")
    docker("build", "--quiet", "--tag", name, str(tmp_path / "context"))
    yield name
    docker("rmi", "--force", name, check=False)


def test_the_image_is_in_the_registry_under_its_digest(
    image: str, registry: Registry, pushed: dict[str, Any]
) -> None:
    url = f"http://{registry.address}/v2/gptj-serve/manifests/{pushed['digest']}"
    request = urllib.request.Request(url, headers={"Accept": MEDIA_TYPES[0]})
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.headers["Content-Type"] == MEDIA_TYPES[0]  # the one that SageMaker takes
        manifest = json.load(answer)
    assert manifest["config"]["digest"] == docker("image", "inspect", "--format", "{{.Id}}", image).strip()
    assert len(manifest["layers"]) == len(layers(image))
    assert docker("image", "inspect", "--format", "{{json .RepoTags}}", image) == '["gptj-serve:test"]\n'


def test_the_second_push_sends_nothing(image: str, registry: Registry, pushed: dict[str, Any]) -> None:
    before = registry.num_written
    place = f"{registry.address}/gptj-serve"
    again = command("push", image, "--registry", place, "--json")
    assert again.json == {**pushed, "pushed": False}
    assert registry.num_written == before > 0


@pytest.mark.usefixtures("pushed")
def test_a_changed_image_sends_its_last_layer_and_comes_back_the_same(
    image: str, registry: Registry, tmp_path: Path
) -> None:
    (tmp_path / "Dockerfile").write_text(f"FROM {image}\nRUN echo {uuid.uuid4().hex} > /changed\n")
    docker("build", "--quiet", "--tag", "gptj-serve:changed", str(tmp_path))
    written, known = run_in("gptj-serve:changed", "cat", "/changed"), layers("gptj-serve:changed")
    already = len(registry.requests)
    place = f"{registry.address}/gptj-serve"
    uri = command("push", "gptj-serve:changed", "--registry", place).out.strip()
    sent = [path for method, path in registry.requests[already:] if method == "PUT" and "/blobs/" in path]
    assert len(sent) == 2  # the layer and the configuration
    docker("rmi", "gptj-serve:changed")
    docker("pull", "--quiet", uri)
    try:
        assert layers(uri) == known
        assert run_in(uri, "cat", "/changed") == written
    finally:
        docker("rmi", uri)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_push_that_is_interrupted_is_finished_by_the_next(
    small: str, registry: Registry, number: signal.Signals
) -> None:
    place = f"{registry.address}/interrupted-{int(number)}"
    process = start("push", small, "--registry", place)
    while not any(method == "POST" and place.split("/")[1] in path for method, path in registry.requests):
        assert process.poll() is None
    process.send_signal(number)
    ended = finish(process)
    assert ended.code in (130, -signal.SIGKILL)
    assert ended.out == ""
    uri = command("push", small, "--registry", place).out.strip()
    assert docker("image", "inspect", "--format", "{{json .RepoTags}}", small) == f'["{small}:latest"]\n'
    before = layers(small)
    docker("rmi", small)
    docker("pull", "--quiet", uri)
    assert layers(uri) == before
    docker("rmi", uri)


class EcrOf:
    """The calls of ECR that a push makes, answered by a registry with a password."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._token = base64.b64encode(f"AWS:{PASSWORD}".encode()).decode()

    def get_authorization_token(self) -> dict[str, Any]:
        return {"authorizationData": [{"authorizationToken": self._token}]}

    def batch_get_image(self, repositoryName: str, imageIds: Any, **_: Any) -> dict[str, Any]:
        url = f"http://{self._registry.address}/v2/{repositoryName}/manifests/{imageIds[0]['imageTag']}"
        headers = {"Accept": MEDIA_TYPES[0], "Authorization": f"Basic {self._token}"}
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
                digest, body = answer.headers["Docker-Content-Digest"], answer.read().decode()
        except urllib.error.HTTPError:
            return {"images": []}
        return {"images": [{"imageId": {"imageDigest": digest}, "imageManifest": body}]}


class Session:
    """A boto3 session that has one client."""

    def __init__(self, ecr: EcrOf) -> None:
        self._ecr = ecr

    def client(self, *_: Any, **__: Any) -> EcrOf:
        return self._ecr


def test_a_login_leaves_nothing_behind(small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As to ECR: the password goes neither into the user's configuration nor into a keychain."""
    # docker takes these for its own where they are on PATH
    (tmp_path / "bin").mkdir()
    for keychain in ("pass", "secretservice"):
        program = tmp_path / "bin" / f"docker-credential-{keychain}"
        program.write_text(f'#!/bin/sh\necho "$1" >> {tmp_path}/keychain\n')
        program.chmod(0o755)
    (tmp_path / "bin" / "pass").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "pass").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "users"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "bin"))
    (tmp_path / "registry").mkdir()
    with contextlib.closing(Registry(tmp_path / "registry", USER)) as registry:
        console = Console()
        image = Docker(console).find_image(small)
        assert image is not None
        upload = ImagePush(image, small, f"{registry.address}/small", content_tag(image))
        assert Docker(console).find_manifest(upload.reference) is None
        asked = (tmp_path / "keychain").read_text()  # with the user's own configuration
        assert "get" in asked
        pushed = send_to_ecr(upload, Aws(Session(EcrOf(registry)), "eu-west-1"), "small", console)
        assert pushed.is_of(image)
    assert (tmp_path / "keychain").read_text() == asked
    assert not (tmp_path / "users").exists()
    assert [one.name for one in (tmp_path / "bin").iterdir() if one.name.startswith("gptj")] == []
