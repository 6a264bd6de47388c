"""The whole road, each command as its user runs it: build, push, upload, deploy, ask, delete.

AWS is moto, which runs no containers and takes no layers. So the image goes to a real registry, and ECR gets
the manifest alone; and what SageMaker does with a model, the test does: it pulls the image by the digest that
the endpoint's model names, fetches the model data that it names, and runs both with its environment.
"""

import contextlib
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from moto.server import ThreadedMotoServer

from gptj_serve import demo
from gptj_serve.aws.common.clients import Aws, connect
from gptj_serve.aws.common.s3 import S3Url
from gptj_serve.aws.image.repository import MEDIA_TYPES, plan_repository
from gptj_serve.aws.model.files import SINGLE
from gptj_serve.models.model_dir import BESIDE_THE_WEIGHTS
from support.aws import moto_components, moto_sagemaker
from support.aws import sagemaker_runtime as fake
from support.aws.deploy_account import make_role
from support.aws.run_commands import Result, command, fake_environment
from support.container import Container, docker, model_mount
from support.image_registry import Registry

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]

ROLE = "arn:aws:iam::123456789012:role/gpt-j"
PROMPT, PARAMETERS = "In the beginning God created", ("--max-new-tokens", "12")

Run = Callable[..., Result]


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[Aws]:
    """An account with nothing in it, which commands reach too."""
    moto_sagemaker.install()
    moto_components.install()
    moto_sagemaker.reset()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in fake_environment(f"http://{host}:{port}").items():
        monkeypatch.setenv(name, value)
    yield connect()
    server.stop()


def publish(aws: Aws, registry: Registry, digest: str) -> str:
    """Give ECR the manifest of an image that the registry has; its address there."""
    for action in plan_repository("gptj-serve", None, {}):
        action.apply(aws)
    url = f"http://{registry.address}/v2/gptj-serve/manifests/{digest}"
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": MEDIA_TYPES[0]})) as answer:
        manifest = answer.read().decode()
    aws.client("ecr").put_image(
        repositoryName="gptj-serve",
        imageManifest=manifest,
        imageManifestMediaType=MEDIA_TYPES[0],
        imageDigest=digest,
        imageTag="one",
    )
    return f"{aws.account}.dkr.ecr.{aws.region}.amazonaws.com/gptj-serve@{digest}"


def model_of(aws: Aws, endpoint: str) -> Mapping[str, Any]:
    """The container that an endpoint's instances run."""
    sagemaker = aws.client("sagemaker")
    found = sagemaker.describe_endpoint(EndpointName=endpoint)
    config = sagemaker.describe_endpoint_config(EndpointConfigName=found["EndpointConfigName"])
    (variant,) = config["ProductionVariants"]
    container: Mapping[str, Any] = sagemaker.describe_model(ModelName=variant["ModelName"])[
        "PrimaryContainer"
    ]
    return container


def fetch(aws: Aws, source: Mapping[str, Any], directory: Path) -> Path:
    """Fetch model data as SageMaker does: all that is under the prefix."""
    assert (source["S3DataType"], source["CompressionType"]) == ("S3Prefix", "None")
    url, s3 = S3Url.parse(source["S3Uri"], "S3Uri"), aws.client("s3")
    directory.mkdir()
    for one in s3.list_objects_v2(Bucket=url.bucket, Prefix=url.key)["Contents"]:
        s3.download_file(url.bucket, one["Key"], str(directory / one["Key"].removeprefix(url.key)))
    return directory


@contextlib.contextmanager
def instance(aws: Aws, endpoint: str, registry: Registry, directory: Path) -> Iterator[Container]:
    """An instance of an endpoint: its image, its model data and its environment."""
    model = model_of(aws, endpoint)
    image = f"{registry.address}/gptj-serve@{model['Image'].partition('@')[2]}"
    docker("pull", "--quiet", image, timeout_s=300)
    data = fetch(aws, model["ModelDataSource"]["S3DataSource"], directory)
    environment = [f"--env={name}={value}" for name, value in model["Environment"].items()]
    try:
        with contextlib.closing(Container(image, *model_mount(data), *environment)) as container:
            container.wait_for("ready")
            yield container
    finally:
        docker("rmi", image)


def left(aws: Aws) -> dict[str, list[Any]]:
    """What an account has of all that commands make, but for buckets; without what there is none of."""
    sagemaker, s3 = aws.client("sagemaker"), aws.client("s3")
    scaling = aws.client("application-autoscaling")
    found = {
        "endpoints": sagemaker.list_endpoints()["Endpoints"],
        "configurations": sagemaker.list_endpoint_configs()["EndpointConfigs"],
        "models": sagemaker.list_models()["Models"],
        "alarms": aws.client("cloudwatch").describe_alarms()["MetricAlarms"],
        "targets": scaling.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"],
        "repositories": aws.client("ecr").describe_repositories()["repositories"],
    }
    for bucket in [one["Name"] for one in s3.list_buckets()["Buckets"]]:
        found[f"objects in {bucket}"] = s3.list_objects_v2(Bucket=bucket).get("Contents", [])
        found[f"parts in {bucket}"] = s3.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
    return {kind: things for kind, things in found.items() if things}


def test_from_the_source_to_an_answer_and_back_to_nothing(
    account: Aws, registry: Registry, pushed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pushed` is the image of ``scripts/build``, pushed by ``scripts/push``."""
    image = publish(account, registry, pushed["digest"])
    make_role(account, "gpt-j")
    data = command("upload_model", str(demo.MODEL_DIR), "--json").json["model_data"]
    deployed = command("deploy", "--image", image, "--model-data", data, "--role", ROLE, "--json").json
    assert (deployed["endpoint"], deployed["status"]) == ("gpt-j", "InService")
    assert command("scale", "gpt-j", "--max", "4").code == 0

    with instance(account, "gpt-j", registry, tmp_path / "model") as container:
        files = {path.name for path in (tmp_path / "model").iterdir()}
        assert files > {SINGLE, "config.json", "tokenizer.json"}
        assert files <= {SINGLE, *BESIDE_THE_WEIGHTS, "gptj-serve.json"}
        text = container.generate(PROMPT, max_new_tokens=12).text
        url = f"http://127.0.0.1:{container.port}"
        with fake.running(fake.passing_on(container.port)) as runtime:
            monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", runtime.url)
            for way in ((url,), ("gpt-j",)):
                for how in ((), ("--stream",)):
                    assert command("invoke", *way, PROMPT, *PARAMETERS, *how).out == f"{text}\n"
            refused = command("invoke", "gpt-j", PROMPT, "--top-p", "3")
        assert (refused.code, refused.err.startswith("error: 400 validation: parameters.top_p")) == (1, True)

    assert "gpt-j" in command("status").out
    assert {*left(account)} >= {"endpoints", "configurations", "models", "alarms", "targets", "repositories"}
    assert command("delete", "gpt-j", "--all", "--yes").code == 0
    assert left(account) == {}
    assert command("delete", "gpt-j", "--all", "--yes").code == 0
