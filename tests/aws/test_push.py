"""``scripts/push`` against moto's ECR and a fake docker that stands for the part which moto lacks."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest

from gptj_serve.aws.common import plan
from gptj_serve.aws.common.clients import Aws
from gptj_serve.aws.common.plan import Action
from gptj_serve.aws.image.repository import Repository, plan_repository
from support.aws.docker_engine import Engine
from support.aws.run_commands import Result, call, command

HOST = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"


def token(aws: Aws) -> str:
    """The password that moto gives out."""
    answer = aws.client("ecr").get_authorization_token()["authorizationData"][0]["authorizationToken"]
    return base64.b64decode(answer).decode().partition(":")[2]


def in_repository(aws: Aws, name: str = "gptj-serve") -> list[str]:
    """Tags of the images in a repository."""
    images = aws.client("ecr").describe_images(repositoryName=name)["imageDetails"]
    return [tag for image in images for tag in image["imageTags"]]


@pytest.mark.usefixtures("aws")
class TestEcr:
    def test_the_first_push_makes_everything_and_prints_the_digest(self, aws: Aws, engine: Engine) -> None:
        image_id = engine.add_image()
        result = call("push", "--json", "--tag", "team=search")
        said = result.json
        tag = f"0.1.0-{image_id[7:19]}"
        assert said["image_uri"] == f"{HOST}/gptj-serve@{said['digest']}"
        assert (said["tag"], said["pushed"]) == (tag, True)
        ecr = aws.client("ecr")
        (found,) = ecr.describe_repositories()["repositories"]
        assert found["imageTagMutability"] == "IMMUTABLE"
        assert found["imageScanningConfiguration"] == {"scanOnPush": True}
        tags = ecr.list_tags_for_resource(resourceArn=found["repositoryArn"])["tags"]
        assert {tag["Key"]: tag["Value"] for tag in tags} == {
            "gptj-serve:repository": "gptj-serve",
            "team": "search",
        }
        policy = json.loads(ecr.get_lifecycle_policy(repositoryName="gptj-serve")["lifecyclePolicyText"])
        assert [rule["selection"]["tagStatus"] for rule in policy["rules"]] == ["untagged"]
        (pushed,) = ecr.describe_images(repositoryName="gptj-serve")["imageDetails"]
        assert (pushed["imageDigest"], pushed["imageTags"]) == (said["digest"], [tag])

    def test_the_second_push_sends_nothing_and_says_the_same(self, engine: Engine) -> None:
        engine.add_image()
        first, before = call("push").out, len(engine.calls)
        again = call("push")
        assert again.out == first
        assert re.fullmatch(rf"{HOST}/gptj-serve@sha256:[0-9a-f]{{64}}\n", first)
        assert "is there already" in again.err
        assert {one["argv"][0] for one in engine.calls[before:]} == {"version", "image"}

    def test_another_image_gets_another_tag(self, aws: Aws, engine: Engine) -> None:
        engine.add_image()
        first = call("push").out
        engine.add_image(changed="yes")
        assert call("push").out != first
        assert len(in_repository(aws)) == 2

    def test_the_password_is_on_stdin_only_and_nothing_of_it_stays(self, aws: Aws, engine: Engine) -> None:
        engine.add_image()
        result = call("push")
        password = token(aws)
        assert [one["stdin"] for one in engine.calls if one["argv"][0] == "login"] == [password]
        assert password not in str([one["argv"] for one in engine.calls])
        assert password not in result.out + result.err
        configs = {one["argv"][0]: one["config"] for one in engine.calls}
        assert configs["login"] == configs["push"] != configs["version"]
        assert engine.leftovers == []
        assert not (engine.state.parent / "users").exists()

    def test_the_image_keeps_its_names_alone(self, engine: Engine) -> None:
        image_id = engine.add_image()
        call("push")
        assert engine.names(image_id) == ["gptj-serve:latest"]

    def test_an_image_that_is_named_by_nothing_else_keeps_that_name(self, engine: Engine) -> None:
        image_id = engine.add_image(f"{HOST}/gptj-serve:1")
        result = call("push", image_id, "--image-tag", "1")
        assert result.code == 0, result.err
        assert engine.names(image_id) == [f"{HOST}/gptj-serve:1"]

    def test_a_repository_of_somebody_else_keeps_its_settings(self, aws: Aws, engine: Engine) -> None:
        engine.add_image()
        ecr = aws.client("ecr")
        ecr.create_repository(repositoryName="team/theirs")
        result = call("push", "--repository", "team/theirs")
        assert result.code == 0, result.err
        assert "mutable; deploy by digest" in result.err
        (found,) = ecr.describe_repositories()["repositories"]
        assert found["imageTagMutability"] == "MUTABLE"
        with pytest.raises(ecr.exceptions.LifecyclePolicyNotFoundException):
            ecr.get_lifecycle_policy(repositoryName="team/theirs")

    def test_a_tag_that_names_another_image_is_refused(self, engine: Engine) -> None:
        engine.add_image()
        assert call("push", "--image-tag", "v1").code == 0
        engine.add_image(changed="yes")
        result = call("push", "--image-tag", "v1")
        assert (result.code, result.out) == (1, "")
        assert f"{HOST}/gptj-serve:v1 is another image" in result.err

    def test_a_dry_run_shows_what_is_then_done_and_changes_nothing(
        self, aws: Aws, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine.add_image()
        shown = call("push", "--dry-run", "--json").json["plan"]
        assert aws.client("ecr").describe_repositories()["repositories"] == []
        assert set(engine.commands) == {"version", "image"}
        for step in shown:
            if "service" in step:
                plan.validate(Action(**step))
        before, applied = len(engine.calls), []
        really_apply = Action.apply

        def apply(action: Action, where: Aws) -> dict[str, Any]:
            applied.append(action.to_dict())
            return really_apply(action, where)

        monkeypatch.setattr(Action, "apply", apply)
        call("push")
        assert applied == [step for step in shown if "service" in step]
        done = [["docker", *one["argv"]] for one in engine.calls[before:]]
        reading = (["docker", "version"], ["docker", "image", "inspect"])
        assert [one for one in done if one[:2] not in reading and one[:3] not in reading] == [
            step["program"] for step in shown if "program" in step
        ]
        assert call("push", "--dry-run").out == "Nothing to do.\n"

    def test_an_image_that_sagemaker_could_not_run(self, engine: Engine) -> None:
        engine.add_image(platform="linux/arm64")
        result = call("push")
        assert result.code == 1
        assert "the image is for linux/arm64; SageMaker's GPU instances are linux/amd64" in result.err


class TestRegistry:
    def test_any_registry_with_dockers_own_login(self, engine: Engine) -> None:
        image_id = engine.add_image()
        first = call("push", "--registry", "127.0.0.1:5000/gptj-serve", "--json").json
        assert re.fullmatch(r"127\.0\.0\.1:5000/gptj-serve@sha256:[0-9a-f]{64}", first["image_uri"])
        assert (first["tag"], first["pushed"]) == (f"0.1.0-{image_id[7:19]}", True)
        assert {one["config"] for one in engine.calls} == {str(engine.state.parent / "users")}
        assert "login" not in engine.commands
        again = call("push", "--registry", "127.0.0.1:5000/gptj-serve", "--json").json
        assert again == {**first, "pushed": False}
        assert engine.commands.count("push") == 1
        assert engine.names(image_id) == ["gptj-serve:latest"]

    def test_a_dry_run(self, engine: Engine) -> None:
        engine.add_image()
        said = call("push", "--registry", "127.0.0.1:5000/gptj-serve", "--dry-run").out
        assert "docker push 127.0.0.1:5000/gptj-serve:0.1.0-" in said
        assert "push" not in engine.commands

    def test_a_registry_that_wants_a_login(self, engine: Engine) -> None:
        engine.add_image()
        engine.wish(push="unauthorized: authentication required")
        result = call("push", "--registry", "registry.example.com/gptj-serve")
        assert result.code == 1
        assert "`docker push` failed with exit code 1: unauthorized" in result.err
        assert "docker login" in result.err


class TestFailures:
    def fail(self, *arguments: str) -> Result:
        result = call("push", *arguments)
        assert (result.code, result.out) == (1, "")
        return result

    def test_no_docker(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        assert "the docker command is not there" in self.fail().err

    def test_no_engine(self, engine: Engine) -> None:
        engine.wish(version="Cannot connect to the Docker daemon at unix:///var/run/docker.sock.")
        assert "the Docker engine does not answer: Cannot connect" in self.fail().err

    @pytest.mark.usefixtures("engine")
    def test_no_image(self) -> None:
        result = self.fail("nothing:1")
        assert result.err == "error: there is no image nothing:1 on this machine\n  scripts/build makes it\n"

    def test_no_credentials_and_no_region(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        engine.add_image()
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        assert "there are no complete AWS credentials" in self.fail().err
        monkeypatch.delenv("AWS_DEFAULT_REGION")
        assert "no AWS region is set" in self.fail().err

    @pytest.mark.usefixtures("aws")
    def test_a_login_that_is_refused(self, engine: Engine) -> None:
        engine.add_image()
        engine.wish(login="Error response from daemon: login attempt failed with status: 400 Bad Request")
        assert "`docker login` failed with exit code 1: Error response" in self.fail().err
        assert engine.leftovers == []

    @pytest.mark.usefixtures("aws")
    def test_a_push_that_fails_leaves_nothing_and_goes_on_the_next_time(self, engine: Engine) -> None:
        image_id = engine.add_image()
        engine.wish(push="denied: User: me is not authorized to perform: ecr:PutImage on resource: x")
        result = self.fail()
        assert "ecr:PutImage" in result.err
        assert "--print-iam" in result.err
        assert engine.leftovers == []
        assert engine.names(image_id) == ["gptj-serve:latest"]
        engine.wish()
        assert call("push").code == 0

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("--registry", "127.0.0.1:5000"), "is not HOST[:PORT]/NAME"),
            (("--registry", "127.0.0.1:5000/a:1"), "no tag: --image-tag"),
            (("--registry", "gptj/serve"), "is not HOST[:PORT]/NAME"),
            (("--registry", "localhost:1/a", "--repository", "bb"), "not allowed with"),
            (("--registry", "localhost:1/a", "--tag", "a=b"), "--tag: repositories outside"),
            (("--repository", "Upper"), "lower-case"),
            (("--image-tag", "latest"), "not 'latest'"),
            (("--image-tag", "a b"), "letters, digits"),
            (("--tag", "nothing"), "is not KEY=VALUE"),
            (("--tag", "gptj-serve:repository=x"), "are taken"),
        ],
    )
    def test_wrong_usage(self, engine: Engine, arguments: tuple[str, ...], said: str) -> None:
        result = call("push", *arguments)
        assert (result.code, result.out) == (2, "")
        assert said in result.err
        assert engine.commands == []


class TestPlan:
    FOUND = Repository("uri", "arn", {"gptj-serve:repository": "one"}, has_lifecycle=True, is_immutable=True)

    def test_a_new_one(self) -> None:
        assert [one.operation for one in plan_repository("one", None, {})] == [
            "create_repository",
            "put_lifecycle_policy",
        ]

    def test_nothing_is_done_twice(self) -> None:
        assert plan_repository("one", self.FOUND, {}) == []

    def test_what_is_missing_of_ours_is_added(self) -> None:
        half = Repository("uri", "arn", self.FOUND.tags, has_lifecycle=False, is_immutable=True)
        assert [one.operation for one in plan_repository("one", half, {"a": "b"})] == [
            "tag_resource",
            "put_lifecycle_policy",
        ]


@pytest.mark.usefixtures("aws")
def test_a_process_of_its_own(engine: Engine) -> None:
    """As users run it: nothing on stdout but the result."""
    engine.add_image()
    said = command("push", "--json")
    assert said.json["image_uri"].startswith(f"{HOST}/gptj-serve@sha256:")
    assert "ab: Pushed\n" in said.err
    assert "Preparing" not in said.err
