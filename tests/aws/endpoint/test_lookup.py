"""What belongs to an endpoint is found; what only looks like it is left alone."""

from gptj_serve.aws.common.clients import Aws
from gptj_serve.aws.endpoint.lookup import (
    TAG,
    alarm_prefix,
    describe_config,
    describe_endpoint,
    describe_model,
    find_resources,
)

ROLE = "arn:aws:iam::123456789012:role/test"


def make_model(aws: Aws, name: str, tag: str | None) -> None:
    tags = [{"Key": TAG, "Value": tag}] if tag else []
    aws.client("sagemaker").create_model(ModelName=name, ExecutionRoleArn=ROLE, Tags=tags)


def make_config(aws: Aws, name: str, model: str, tag: str) -> None:
    variant = {
        "VariantName": "main",
        "ModelName": model,
        "InitialInstanceCount": 1,
        "InstanceType": "ml.g4dn.2xlarge",
        "InitialVariantWeight": 1,
    }
    aws.client("sagemaker").create_endpoint_config(
        EndpointConfigName=name, ProductionVariants=[variant], Tags=[{"Key": TAG, "Value": tag}]
    )


def test_nothing_is_there(aws: Aws) -> None:
    sagemaker = aws.client("sagemaker")
    assert describe_endpoint(sagemaker, "a") is None
    assert describe_config(sagemaker, "a") is None
    assert describe_model(sagemaker, "a") is None
    assert find_resources(sagemaker, aws.client("cloudwatch"), "a").is_empty


def test_only_what_is_ours_is_found(aws: Aws) -> None:
    sagemaker, cloudwatch = aws.client("sagemaker"), aws.client("cloudwatch")
    make_model(aws, "a-0123abcd", "a")
    make_model(aws, "a-0123abce", None)
    make_model(aws, "a-b-0123abcd", "a-b")
    make_model(aws, "a-other", "a")
    make_config(aws, "a-89abcdef", "a-0123abcd", "a")
    make_config(aws, "a-89abcdee", "a-0123abcd", "somebody")
    sagemaker.create_endpoint(EndpointName="a", EndpointConfigName="a-89abcdef")
    for name in (alarm_prefix("a") + "errors", alarm_prefix("a-b") + "errors", "a"):
        cloudwatch.put_metric_alarm(
            AlarmName=name,
            ComparisonOperator="GreaterThanThreshold",
            EvaluationPeriods=1,
            MetricName="Invocation5XXErrors",
            Namespace="AWS/SageMaker",
            Period=60,
            Statistic="Sum",
            Threshold=1,
            Tags=[{"Key": TAG, "Value": "a"}],
        )
    theirs = {"Statistic": "Sum", "Threshold": 1, "Period": 60, "EvaluationPeriods": 1, "MetricName": "m"}
    theirs |= {"Namespace": "n", "ComparisonOperator": "GreaterThanThreshold"}
    cloudwatch.put_metric_alarm(AlarmName=alarm_prefix("a") + "theirs", **theirs)
    found = find_resources(sagemaker, cloudwatch, "a")
    assert found.endpoint is not None
    assert found.endpoint["EndpointConfigName"] == "a-89abcdef"
    assert found.configs == ("a-89abcdef",)
    assert found.models == ("a-0123abcd",)
    assert [alarm["AlarmName"] for alarm in found.alarms] == ["gptj-serve/a/errors"]
    assert found.foreign_alarms == ("gptj-serve/a/theirs",)
    assert not found.is_empty
