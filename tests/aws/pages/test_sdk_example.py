"""The example of docs/deploying.md with SageMaker's Python SDK, run as it is printed there.

``scripts/test-sdk`` makes the environment that it runs in.
"""

import os
import re
import subprocess

import pytest

from gptj_serve.aws.common.clients import Aws
from support.aws.deploy_account import ROLE, deploy, failing, make_role, push_image
from support.server import ROOT

(EXAMPLE,) = re.findall(
    r"^### With SageMaker's Python SDK$.+?^```python\n(.+?)^```$",
    (ROOT / "docs/deploying.md").read_text(),
    re.DOTALL | re.MULTILINE,
)
DATA = "s3://my-bucket/gpt-j-6b/"

pytestmark = [pytest.mark.outside, pytest.mark.timeout(300)]


def test_the_example_makes_what_deploying_makes(aws: Aws) -> None:
    image = push_image(aws, "one")
    make_role(aws, "test")
    with failing("HeadBucket", "403", "Forbidden"):  # so that GPT-J-6B is assumed
        planned = deploy(image, "--dry-run", "--json", data=DATA, role=ROLE).json["actions"]
    ours = {one["operation"]: one["request"] for one in planned}

    run_example()
    sagemaker = aws.client("sagemaker")
    container = sagemaker.describe_model(ModelName="gpt-j")["PrimaryContainer"]
    assert {**container, "Image": image} == ours["create_model"]["PrimaryContainer"]
    config = sagemaker.describe_endpoint_config(EndpointConfigName="gpt-j")
    (variant,), (our_variant,) = (
        one["ProductionVariants"] for one in (config, ours["create_endpoint_config"])
    )
    assert {**variant, "ModelName": our_variant["ModelName"]} == our_variant
    assert config["MetricsConfig"] == ours["create_endpoint_config"]["MetricsConfig"]
    endpoint = sagemaker.describe_endpoint(EndpointName="gpt-j")
    assert (endpoint["EndpointStatus"], endpoint["EndpointConfigName"]) == ("InService", "gpt-j")


def run_example() -> None:
    """Run the example with the SDK.

    Raises:
        AssertionError: It failed.
    """
    venv = os.environ.get("SAGEMAKER_CORE_VENV")
    if venv is None:
        pytest.skip("SAGEMAKER_CORE_VENV names no environment with the SDK; scripts/test-sdk makes one")
    command = [f"{venv}/bin/python", "-c", EXAMPLE]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-3000:]
