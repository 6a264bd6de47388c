"""Endpoints as ``scripts/deploy`` leaves them, made in moto by plain calls."""

from typing import Any

from gptj_serve.aws.clients import Aws
from gptj_serve.aws.endpoints import TAG, VARIANT

ROLE = "arn:aws:iam::123456789012:role/gptj"
IMAGE = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/gptj-serve@sha256:" + "ab" * 32
DATA = "s3://models/gpt-j-6b/"


def make_endpoint(
    aws: Aws,
    name: str = "gpt-j",
    instance_type: str = "ml.g4dn.2xlarge",
    digits: str = "0a1b2c3d",
    *,
    environment: dict[str, str] | None = None,
    component: bool = False,
    least: int = 0,
) -> None:
    """Make model, configuration and endpoint; with ``component`` one that hosts the model so."""
    sagemaker = aws.client("sagemaker")
    made = f"{name}-{digits}"
    tags = [{"Key": TAG, "Value": name}]
    source = {"S3Uri": DATA, "S3DataType": "S3Prefix", "CompressionType": "None"}
    container: dict[str, Any] = {
        "Image": IMAGE,
        "ModelDataSource": {"S3DataSource": source},
        "Environment": environment or {},
    }
    sagemaker.create_model(ModelName=made, PrimaryContainer=container, ExecutionRoleArn=ROLE, Tags=tags)
    variant: dict[str, Any] = {
        "VariantName": VARIANT,
        "InstanceType": instance_type,
        "InitialInstanceCount": 1,
        "ModelName": made,
    }
    config: dict[str, Any] = {"EndpointConfigName": made, "Tags": tags, "ProductionVariants": [variant]}
    if component:
        managed = {"Status": "ENABLED", "MinInstanceCount": least, "MaxInstanceCount": 2}
        del variant["ModelName"]
        variant["ManagedInstanceScaling"] = managed
        config["ExecutionRoleArn"] = ROLE
    sagemaker.create_endpoint_config(**config)
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=made, Tags=tags)
    if component:
        sagemaker.create_inference_component(
            InferenceComponentName=made,
            EndpointName=name,
            VariantName=VARIANT,
            Specification={
                "ModelName": made,
                "ComputeResourceRequirements": {
                    "NumberOfAcceleratorDevicesRequired": 1,
                    "MinMemoryRequiredInMb": 1024,
                },
            },
            RuntimeConfig={"CopyCount": 1},
            Tags=tags,
        )
