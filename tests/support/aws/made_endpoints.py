"""Endpoints as ``scripts/deploy`` leaves them, made in moto by plain calls."""

from typing import Any

from moto.sagemaker.models import sagemaker_backends

from gptj_serve.aws.common.clients import Aws
from gptj_serve.aws.endpoint import autoscaling
from gptj_serve.aws.endpoint.lookup import TAG, VARIANT
from gptj_serve.aws.image import repository
from gptj_serve.aws.model import manifest
from gptj_serve.aws.model.manifest import ModelManifest
from support.aws import moto_components

ROLE = "arn:aws:iam::123456789012:role/gptj"
IMAGE = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/gptj-serve@sha256:" + "ab" * 32
BUCKET, REPOSITORY = "models", "gptj-serve"
DATA = f"s3://{BUCKET}/gpt-j-6b/"


def endpoint_in_moto(name: str) -> Any:
    """moto's own object: a test may change its state."""
    return sagemaker_backends["123456789012"]["eu-west-1"].endpoints[name]


def make_belongings(aws: Aws, *, ours: bool = True, is_tar: bool = False) -> None:
    """Make model data and repository; unless ``ours``, as others would."""
    s3 = aws.client("s3")
    if not s3.list_buckets()["Buckets"]:
        s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": aws.region})
    files = {"config.json": 1, "model.safetensors": 1}
    for name in ["model.tar.gz"] if is_tar else files:
        s3.put_object(Bucket=BUCKET, Key=f"gpt-j-6b/{name}", Body=b"x")
    if ours:
        upload = ModelManifest("gpt-j-6b", "00", 1, ("F16",), files, is_tar)
        s3.put_object(Bucket=BUCKET, Key=f"gpt-j-6b/{manifest.NAME}", Body=upload.to_bytes())
    marks = {repository.TAG: REPOSITORY} if ours else {}
    tags = [{"Key": key, "Value": value} for key, value in marks.items()]
    aws.client("ecr").create_repository(repositoryName=REPOSITORY, tags=tags)


def make_endpoint(
    aws: Aws,
    name: str = "gpt-j",
    instance_type: str = "ml.g4dn.2xlarge",
    digits: str = "0a1b2c3d",
    *,
    environment: dict[str, str] | None = None,
    component: bool = False,
    least: int = 0,
    asynchronous: bool = False,
    tagged: bool = True,
    status: str = "InService",
    data: str = DATA,
) -> None:
    """Make model, configuration and endpoint.

    Args:
        aws: Where.
        name: The endpoint's.
        instance_type: One that moto knows.
        digits: The end of the names of model and configuration.
        environment: The model's.
        component: It hosts the model as an inference component.
        least: Instances at least, of such an endpoint.
        asynchronous: It is an asynchronous one.
        tagged: It looks as if ``scripts/deploy`` had made it.
        status: The endpoint's.
        data: The model's.
    """
    sagemaker = aws.client("sagemaker")
    made = f"{name}-{digits}"
    tags = [{"Key": TAG, "Value": name}] if tagged else []
    source = {"S3Uri": data, "S3DataType": "S3Prefix", "CompressionType": "None"}
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
    if asynchronous:
        config["AsyncInferenceConfig"] = {"OutputConfig": {"S3OutputPath": "s3://models/out/"}}
    sagemaker.create_endpoint_config(**config)
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=made, Tags=tags)
    endpoint = endpoint_in_moto(name)
    endpoint.endpoint_status, endpoint.then = status, "InService"
    endpoint.num_busy = 1 << 20  # of times that it is described so
    if component:
        sagemaker.create_inference_component(
            InferenceComponentName=name,
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
        moto_components.components()[name].update(InferenceComponentStatus="InService", then=None)


def scaling(aws: Aws) -> tuple[Any, ...]:
    """All there is of scaling, without what differs between runs."""
    client = aws.client(autoscaling.SERVICE)
    targets = client.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]
    policies = client.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"]
    alarms = aws.client("cloudwatch").describe_alarms()["MetricAlarms"]
    arns = {one["PolicyARN"]: one["PolicyName"] for one in policies}
    return (
        [(one["ResourceId"], one["MinCapacity"], one["MaxCapacity"]) for one in targets],
        sorted((one["PolicyName"], one["ResourceId"], str(_configuration(one))) for one in policies),
        [(one["AlarmName"], [arns[arn] for arn in one["AlarmActions"]]) for one in alarms],
    )


def _configuration(policy: dict[str, Any]) -> Any:
    return policy.get("TargetTrackingScalingPolicyConfiguration") or policy["StepScalingPolicyConfiguration"]
