"""``scripts/deploy`` against an account in moto: what it makes, changes, refuses, and takes back."""

import json
import time

import boto3
import pytest

from gptj_serve.aws.common.clients import Aws
from gptj_serve.aws.common.console import Console
from gptj_serve.aws.common.errors import CommandError
from gptj_serve.aws.endpoint import waiting
from gptj_serve.aws.endpoint.deploying import deployment as deploy_module
from gptj_serve.aws.endpoint.lookup import TAG
from gptj_serve.aws.iam.roles import TRUST, find_execution_role
from support.aws.deploy_account import (
    BUCKET,
    DATA,
    NOTHING,
    ROLE,
    SETTINGS,
    FakeTime,
    deploy,
    failing,
    make_role,
    push_image,
    state,
    upload,
)
from support.aws.made_endpoints import endpoint_in_moto
from support.aws.moto_sagemaker import script
from support.aws.permission_checks import recorded
from support.aws.run_commands import command

NO_CAPACITY = "Unable to provision requested ML compute capacity due to InsufficientInstanceCapacity error."
ALARMS = [
    f"gptj-serve/gpt-j/update-{kind}" for kind in ("first-chunk", "latency", "server-errors", "stream-errors")
]


@pytest.fixture(autouse=True)
def clock(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    """Time that passes at once; and all runs share the clients, which take long to make."""
    fake = FakeTime()
    monkeypatch.setattr(waiting, "SYSTEM_CLOCK", waiting.Clock(fake.now, fake.sleep))
    monkeypatch.setattr(deploy_module, "connect", lambda *_: aws)
    return fake


@pytest.fixture
def image(aws: Aws) -> str:
    upload(aws)
    return push_image(aws, "one")


class TestFirstTime:
    def test_everything_is_made_and_tagged(self, aws: Aws, image: str) -> None:
        script.num_busy = 3
        result = deploy(image, "--json", "--tag", "team=search")
        made = state(aws)
        assert result.json["status"] == "InService"
        assert result.json["change"] == "create"
        assert result.json["usd_per_hour"] == 0.94
        assert made["status"] == "InService"
        assert (len(made["configs"]), len(made["models"]), made["alarms"]) == (1, 1, ALARMS)
        assert made["configs"] == [made["config"]] == [result.json["config"]]
        sagemaker = aws.client("sagemaker")
        arns = [
            sagemaker.describe_endpoint(EndpointName="gpt-j")["EndpointArn"],
            sagemaker.describe_endpoint_config(EndpointConfigName=made["config"])["EndpointConfigArn"],
            sagemaker.describe_model(ModelName=made["models"][0])["ModelArn"],
        ]
        for arn in arns:
            tags = {one["Key"]: one["Value"] for one in sagemaker.list_tags(ResourceArn=arn)["Tags"]}
            assert (tags[TAG], tags["team"]) == ("gpt-j", "search")

    def test_status_and_time_are_shown(self, clock: FakeTime, image: str) -> None:
        script.num_busy = 20
        result = deploy(image)
        lines = [line.strip() for line in result.err.splitlines()]
        assert "0:00  Creating" in lines
        assert "2:00  Creating" in lines  # again, for those who read a log
        assert lines[-1] == "5:00  InService"
        assert result.out.startswith(
            "gpt-j is in service after 5:00: 1 x ml.g4dn.2xlarge, about $0.94 an hour"
        )
        assert len(clock.slept) == 20

    def test_a_tag_is_looked_up(self, aws: Aws, image: str) -> None:
        result = deploy(image.split("@")[0] + ":one")
        assert result.code == 0
        assert image.split("@")[1] in result.err
        model = aws.client("sagemaker").describe_model(ModelName=state(aws)["models"][0])
        assert model["PrimaryContainer"]["Image"] == image

    def test_dry_run_shows_every_call_and_makes_none(self, aws: Aws, image: str) -> None:
        with recorded() as calls:
            result = deploy(image, "--dry-run")
        assert result.code == 0
        assert [line for line in result.out.splitlines() if line.startswith("sagemaker.create_endpoint ")]
        assert state(aws) == NOTHING
        assert not [name for _, name in calls if not name.startswith(("Describe", "List", "Get", "Head"))]
        planned = [one["operation"] for one in deploy(image, "--dry-run", "--json").json["actions"]]
        with recorded() as calls:
            deploy(image)
        done = [name for _, name in calls if name.startswith(("Create", "Put", "Update", "Delete"))]
        assert done == ["".join(part.title() for part in name.split("_")) for name in planned]

    def test_an_asynchronous_endpoint(self, aws: Aws, image: str) -> None:
        assert deploy(image, "--async-output", "s3://answers/one/", "--async-concurrency", "8").code == 0
        config = aws.client("sagemaker").describe_endpoint_config(EndpointConfigName=state(aws)["config"])
        asynchronous = config["AsyncInferenceConfig"]
        assert asynchronous["OutputConfig"]["S3OutputPath"] == "s3://answers/one/"
        assert asynchronous["ClientConfig"]["MaxConcurrentInvocationsPerInstance"] == 8
        refused = deploy(image)
        assert refused.code == 1
        assert "gpt-j is asynchronous, and stays so" in refused.err

    def test_as_users_run_it(self, aws: Aws, image: str) -> None:
        result = command("deploy", "--image", image, "--model-data", DATA, "--role", ROLE, "--json")
        assert result.json["endpoint"] == "gpt-j"
        assert state(aws)["status"] == "InService"


class TestAgain:
    def test_the_same_arguments_change_nothing(self, aws: Aws, image: str) -> None:
        deploy(image)
        before = state(aws)
        with recorded() as calls:
            result = deploy(image, "--json")
        assert result.json["change"] == "none"
        assert not [name for _, name in calls if not name.startswith(("Describe", "List", "Get", "Head"))]
        assert state(aws) == before
        assert "nothing to change" in deploy(image).out
        assert deploy(image, "--dry-run").out == "Nothing to do.\n"

    def test_a_new_image_is_an_update_with_a_way_back(self, aws: Aws, image: str) -> None:
        deploy(image)
        before = state(aws)
        script.num_busy = 2
        result = deploy(push_image(aws, "two"), "--json")
        after = state(aws)
        assert result.json["change"] == "update"
        assert after["config"] != before["config"]
        assert after["configs"] == [after["config"]]
        assert len(after["models"]) == 1
        assert after["models"] != before["models"]
        assert after["all configs"] == after["all models"] == 1
        described = aws.client("sagemaker").describe_endpoint(EndpointName="gpt-j")
        rollback = described["LastDeploymentConfig"]["AutoRollbackConfiguration"]["Alarms"]
        assert sorted(one["AlarmName"] for one in rollback) == ALARMS

    def test_new_files_at_the_same_address_are_an_update(self, aws: Aws, image: str) -> None:
        deploy(image)
        aws.client("s3").put_object(Bucket=BUCKET, Key="gpt-j-6b/gptj-serve.json", Body=b"{}")
        assert deploy(image, "--json").json["change"] == "none"
        upload(aws, {**SETTINGS, "n_layer": 27})
        assert deploy(image, "--json").json["change"] == "update"

    def test_the_number_that_scaling_chose_stays_until_another_count_is_asked_for(
        self, aws: Aws, image: str
    ) -> None:
        deploy(image)
        aws.client("sagemaker").update_endpoint_weights_and_capacities(
            EndpointName="gpt-j",
            DesiredWeightsAndCapacities=[
                {"VariantName": "main", "DesiredInstanceCount": 3, "DesiredWeight": 1}
            ],
        )
        assert deploy(push_image(aws, "two"), "--json").json["instances"] == 3
        assert deploy(push_image(aws, "three"), "--count", "2", "--json").json["instances"] == 2

    def test_an_endpoint_that_is_being_made_is_waited_for(self, aws: Aws, image: str) -> None:
        script.num_busy = 3
        with recorded() as calls:
            deploy(image)
        endpoint = next(name for _, name in calls if name == "CreateEndpoint")
        assert endpoint
        aws.client("sagemaker").delete_endpoint(EndpointName="gpt-j")
        made = state(aws)
        aws.client("sagemaker").create_endpoint(
            EndpointName="gpt-j",
            EndpointConfigName=made["configs"][0],
            Tags=[{"Key": TAG, "Value": "gpt-j"}],
        )
        result = deploy(image, "--json")
        assert "gpt-j is Creating: waiting for that first" in result.err
        assert result.json["change"] == "none"

    def test_one_that_failed_is_made_again(self, aws: Aws, image: str) -> None:
        script.creations = ["it was not meant to be"]
        assert deploy(image, "--keep").code == 1
        assert state(aws)["status"] == "Failed"
        assert deploy(image, "--json").json["change"] == "recreate"
        assert state(aws)["status"] == "InService"

    def test_alarms_come_and_go(self, aws: Aws, image: str) -> None:
        deploy(image, "--no-alarms")
        assert state(aws)["alarms"] == []
        deploy(image)
        assert state(aws)["alarms"] == ALARMS
        deploy(image, "--rollback-latency-s", "0")
        assert state(aws)["alarms"] == ALARMS[2:]
        deploy(image, "--env", "GPTJ_FRONT=mms")  # which has no streams
        assert state(aws)["alarms"] == ALARMS[1:3]

    def test_alarms_of_others_stay(self, aws: Aws, image: str) -> None:
        deploy(image)
        cloudwatch = aws.client("cloudwatch")
        one = cloudwatch.describe_alarms(AlarmNames=ALARMS[2:3])["MetricAlarms"][0]
        keys = ("ComparisonOperator", "EvaluationPeriods", "MetricName", "Namespace", "Period", "Threshold")
        name = "gptj-serve/gpt-j/from-zero"
        cloudwatch.put_metric_alarm(AlarmName=name, Statistic="Sum", **{key: one[key] for key in keys})
        deploy(image, "--no-alarms")
        assert [alarm["AlarmName"] for alarm in cloudwatch.describe_alarms()["MetricAlarms"]] == [name]

    def test_an_alarm_of_others_is_not_overwritten(self, aws: Aws, image: str) -> None:
        cloudwatch = aws.client("cloudwatch")
        theirs = {"Statistic": "Sum", "Period": 60, "EvaluationPeriods": 1, "Threshold": 7.0}
        named = {"MetricName": "a", "Namespace": "b", "ComparisonOperator": "GreaterThanThreshold"}
        cloudwatch.put_metric_alarm(AlarmName=ALARMS[2], **theirs, **named)
        before = cloudwatch.describe_alarms()["MetricAlarms"]
        result = deploy(image)
        assert result.code == 1
        assert f"the alarm {ALARMS[2]} was not made by these commands" in result.err
        assert "--no-alarms" in result.err
        assert cloudwatch.describe_alarms()["MetricAlarms"] == before
        assert deploy(image, "--no-alarms").code == 0
        assert cloudwatch.describe_alarms()["MetricAlarms"] == before


class TestPlan:
    """What a dry run says is what the run does."""

    @pytest.mark.parametrize(
        ("status", "plan"),
        [
            ("Creating", "none"),
            ("Updating", "none"),
            ("SystemUpdating", "none"),
            ("RollingBack", "none"),
            ("Deleting", "create"),
        ],
    )
    def test_of_an_endpoint_that_changes(self, aws: Aws, image: str, status: str, plan: str) -> None:
        deploy(image)
        endpoint_in_moto("gpt-j").endpoint_status = status
        endpoint_in_moto("gpt-j").num_busy = 1 << 20  # of times that it is described so
        before = state(aws)
        found = deploy(image, "--dry-run", "--json").json
        assert found["plan"] == plan
        assert found["waits_for"] == [f"endpoint gpt-j is {status}"]
        assert "delete_endpoint" not in [one["operation"] for one in found["actions"]]
        said = deploy(push_image(aws, "two"), "--dry-run").out
        assert said.startswith(f"# endpoint gpt-j is {status}: waits for that first.")
        assert ("sagemaker.update_endpoint" in said) == (status != "Deleting")
        assert state(aws) == before

    def test_of_an_update_that_is_on_its_way(self, aws: Aws, image: str) -> None:
        deploy(image)
        two = push_image(aws, "two")
        script.num_busy = 1 << 20
        with failing("DescribeEndpoint", "ExpiredTokenException", "expired", times=9, skip=2):
            deploy(two)
        assert deploy(two, "--dry-run", "--json").json["plan"] == "none"
        assert deploy(image, "--dry-run", "--json").json["plan"] == "update"

    def test_it_says_what_it_costs_and_what_quota_it_takes(self, image: str) -> None:
        plan = deploy(image, "--dry-run", "--count", "3")
        assert "From here on it costs about $2.82 an hour (3 x ml.g4dn.2xlarge; list price" in plan.out
        assert "until `scripts/delete gpt-j`" in plan.out
        quota = (
            '"ml.g4dn.2xlarge for endpoint usage" (Service Quotas, Amazon SageMaker) is 0 in a new account'
        )
        assert quota in plan.out
        assert "it has to be 3 or more, and twice that for updates" in plan.out
        done = deploy(image, "--count", "3")
        assert quota in done.err
        assert quota not in done.out
        assert "costs" not in deploy(image, "--count", "3", "--dry-run").out

    def test_an_update_costs_twice(self, aws: Aws, image: str) -> None:
        deploy(image)
        said = deploy(push_image(aws, "two"), "--dry-run").out
        assert "While the update lasts, it costs in addition about $0.94 an hour" in said
        assert "it has to be 2 or more." in said

    def test_a_price_that_is_not_known(self, image: str) -> None:
        said = deploy(image, "--dry-run", "--instance-type", "ml.p5.4xlarge").out
        assert "an amount that is not known here an hour (1 x ml.p5.4xlarge" in said


class TestHostImage:
    OLDER, OLDEST = "al2-ami-sagemaker-inference-gpu-3-1", "al2-ami-sagemaker-inference-gpu-2-1"

    def test_a_container_that_dies_without_a_word_names_the_next_one(self, aws: Aws, image: str) -> None:
        script.creations = ["CannotStartContainerError"] * 3
        said = deploy(image).err
        assert "the host image was al2023-ami-sagemaker-inference-gpu-4-1" in said
        assert f"--inference-ami {self.OLDER}" in said
        assert f"--inference-ami {self.OLDEST}" in deploy(image, "--inference-ami", self.OLDER).err
        assert f"{self.OLDEST}, the last one" in deploy(image, "--inference-ami", self.OLDEST).err
        assert deploy(image, "--inference-ami", self.OLDER).code == 0
        config = aws.client("sagemaker").describe_endpoint_config(EndpointConfigName=state(aws)["config"])
        assert config["ProductionVariants"][0]["InferenceAmiVersion"] == self.OLDER

    def test_one_that_has_said_why_does_not(self, aws: Aws, image: str) -> None:
        group = "/aws/sagemaker/Endpoints/gpt-j"
        logs = aws.client("logs")
        logs.create_log_group(logGroupName=group)
        logs.create_log_stream(logGroupName=group, logStreamName="main/i-1")
        event = {"timestamp": int(time.time() * 1000), "message": "no GPU"}
        logs.put_log_events(logGroupName=group, logStreamName="main/i-1", logEvents=[event])
        script.creations = ["did not pass the ping health check"]
        assert "--inference-ami" not in deploy(image).err

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (
                ["--inference-ami", "newest"],
                "--inference-ami newest: not one for a GPU; it looks like al2023",
            ),
            (["--inference-ami", OLDER, "--instance-type", "ml.m5.xlarge"], "ml.m5.xlarge has no GPU"),
        ],
    )
    def test_what_it_cannot_be(self, aws: Aws, image: str, arguments: list[str], said: str) -> None:
        assert said in refusal(aws, image, *arguments)


class TestFailures:
    def test_what_was_made_is_taken_back_and_the_log_is_shown(self, aws: Aws, image: str) -> None:
        group = "/aws/sagemaker/Endpoints/gpt-j"
        logs = aws.client("logs")
        logs.create_log_group(logGroupName=group)
        logs.create_log_stream(logGroupName=group, logStreamName="main/i-1")
        events = [
            {"timestamp": int(time.time() * 1000), "message": '{"event": "not_started", "why": "no GPU"}'}
        ]
        logs.put_log_events(logGroupName=group, logStreamName="main/i-1", logEvents=events)
        script.creations = ["The container for production variant main did not pass the ping health check."]
        result = deploy(image)
        assert result.code == 1
        assert "did not pass the ping health check" in result.err
        assert '"event": "not_started"' in result.err
        assert state(aws) == NOTHING

    def test_a_container_that_never_ran(self, aws: Aws, image: str) -> None:
        script.creations = ["CannotStartContainerError"]
        result = deploy(image)
        assert "the container never ran" in result.err
        assert state(aws) == NOTHING

    def test_keep(self, aws: Aws, image: str) -> None:
        script.creations = ["no"]
        assert deploy(image, "--keep").code == 1
        kept = state(aws)
        assert (kept["status"], len(kept["configs"]), len(kept["models"])) == ("Failed", 1, 1)

    def test_an_update_that_is_called_off_leaves_what_was_there(self, aws: Aws, image: str) -> None:
        deploy(image)
        before = state(aws)
        script.updates = ["One or more alarms went off: update-server-errors"]
        result = deploy(push_image(aws, "two"))
        assert result.code == 1
        assert "the update was called off, the version before it serves: One or more alarms" in result.err
        assert state(aws) == before

    def test_a_call_that_is_refused_takes_back_what_was_made(self, aws: Aws, image: str) -> None:
        with failing(
            "CreateEndpoint", "ResourceLimitExceeded", "The account-level service limit is 0 Instances"
        ):
            result = deploy(image)
        assert result.code == 1
        assert "service limit" in result.err
        assert state(aws) == NOTHING

    def test_permission_to_look_is_lost_while_it_waits(self, aws: Aws, image: str) -> None:
        script.num_busy = 3
        with failing("DescribeEndpoint", "ExpiredTokenException", "expired", times=5, skip=1):
            result = deploy(image)
        assert result.code == 1
        assert "credentials have expired" in result.err
        assert state(aws)["status"] is not None  # it goes on by itself
        assert deploy(image, "--json").json["change"] == "none"

    def test_what_cannot_be_taken_back_is_said(self, aws: Aws, image: str) -> None:
        script.creations = ["first reason"]
        with failing("DeleteEndpointConfig", "AccessDeniedException", "no"):
            result = deploy(image)
        assert "first reason" in result.err
        assert "Not all could be taken away" in result.err
        assert deploy(image).code == 0
        assert state(aws)["all configs"] == 1

    def test_an_alarm_that_is_on_already(self, aws: Aws, image: str) -> None:
        deploy(image)
        aws.client("cloudwatch").set_alarm_state(AlarmName=ALARMS[2], StateValue="ALARM", StateReason="test")
        before = state(aws)
        result = deploy(push_image(aws, "two"))
        assert result.code == 1
        assert f"{ALARMS[2]}: in alarm now" in result.err
        assert state(aws) == before
        assert deploy(push_image(aws, "three"), "--no-alarms").code == 0


class TestCapacity:
    def test_it_tries_again_with_longer_and_longer_pauses(
        self, aws: Aws, clock: FakeTime, image: str
    ) -> None:
        script.creations = [NO_CAPACITY] * 3
        assert deploy(image).code == 0
        assert clock.slept == [60, 120, 240]
        assert state(aws)["status"] == "InService"

    def test_it_gives_up_and_names_others(self, aws: Aws, clock: FakeTime, image: str) -> None:
        script.creations = [NO_CAPACITY] * 9
        result = deploy(image, "--capacity-wait", "10")
        assert result.code == 1
        assert clock.slept == [60, 120, 240]
        assert "ml.g5.xlarge, ml.g6.xlarge, ml.g6e.xlarge" in result.err
        assert "g4dn.xlarge" not in result.err.split("fits")[1]
        assert state(aws) == NOTHING

    def test_updates_too(self, aws: Aws, clock: FakeTime, image: str) -> None:
        deploy(image)
        script.updates = [NO_CAPACITY]
        assert deploy(push_image(aws, "two")).code == 0
        assert clock.slept == [60]


class TestRole:
    def test_it_is_made_when_asked_for(self, aws: Aws, image: str) -> None:
        assert deploy(image, "--create-role", role=None).code == 0
        iam = aws.client("iam")
        role = iam.get_role(RoleName="gptj-serve-execution")["Role"]
        assert (
            role["AssumeRolePolicyDocument"]["Statement"][0]["Principal"]["Service"]
            == "sagemaker.amazonaws.com"
        )
        policy = iam.get_role_policy(RoleName="gptj-serve-execution", PolicyName="gptj-serve-eu-west-1-gpt-j")
        text = json.dumps(policy["PolicyDocument"])
        assert f"arn:aws:s3:::{BUCKET}/gpt-j-6b/*" in text
        assert f":{aws.account}:repository/gptj-serve" in text
        model = aws.client("sagemaker").describe_model(ModelName=state(aws)["models"][0])
        assert model["ExecutionRoleArn"] == role["Arn"]
        assert deploy(image, "--create-role", "--json", role=None).json["change"] == "none"

    def test_a_new_role_takes_a_moment(self, clock: FakeTime, image: str) -> None:
        with failing("CreateModel", "ValidationException", "Could not assume role", times=2):
            assert deploy(image, "--create-role", role=None).code == 0
        assert clock.slept == [6, 6]
        with failing("CreateModel", "ValidationException", "Could not assume role", times=2):
            assert (
                deploy(image, "--tag", "a=b").code == 1
            )  # the user's own role does not come right by waiting

    def test_its_name_will_do(self, aws: Aws, image: str) -> None:
        make_role(aws, "mine")
        deploy(image, role="mine")
        model = aws.client("sagemaker").describe_model(ModelName=state(aws)["models"][0])
        assert model["ExecutionRoleArn"] == "arn:aws:iam::123456789012:role/mine"

    @pytest.mark.parametrize(
        ("role", "said"),
        [
            ("NoSuchRole", "--role NoSuchRole: there is no such role\n"),
            ("arn:aws:iam::123456789012:role/NoSuchRole", "there is no such role\n"),
            ("arn:aws:iam::123456789012:user/me", "this is a user, and endpoints run with a role of IAM"),
            ("arn:aws:sts::123456789012:assumed-role/test/me", "this is a assumed-role"),
            ("arn:aws:iam::999988887777:role/test", "it is in the account 999988887777"),
            ("arn:test", "no ARN of a role"),
            ("ec2s", "it does not let SageMaker take it on"),
        ],
    )
    def test_what_is_no_execution_role(self, aws: Aws, image: str, role: str, said: str) -> None:
        make_role(aws, "ec2s", "ec2.amazonaws.com")
        result = deploy(image, "--dry-run", role=role)
        assert result.code in (1, 2)
        assert said in result.err
        assert "--create-role" in result.err or "--role takes" in result.err
        assert result.out == ""

    def test_one_with_a_path(self, aws: Aws, image: str) -> None:
        trust = json.dumps(TRUST)
        aws.client("iam").create_role(RoleName="mine", Path="/service-role/", AssumeRolePolicyDocument=trust)
        arn = "arn:aws:iam::123456789012:role/service-role/mine"
        for role in ("mine", arn):
            assert f'"ExecutionRoleArn": "{arn}"' in deploy(image, "--dry-run", role=role).out
        with pytest.raises(CommandError, match=f"there is no such role, but {arn}"):
            find_execution_role(aws, "arn:aws:iam::123456789012:role/mine", Console())

    def test_one_that_may_not_be_looked_at_is_taken_as_it_is(self, image: str) -> None:
        with failing("GetRole", "AccessDenied", "no", times=2):
            result = deploy(image, "--dry-run", role="mine")
            assert "arn:aws:iam::123456789012:role/mine" in result.out
            assert "iam:GetRole" in result.err
            assert ROLE in deploy(image, "--dry-run").out


def refusal(aws: Aws, image: str, *arguments: str, data: str = DATA) -> str:
    """What a deployment that cannot work says; nothing is made."""
    result = deploy(image, *arguments, data=data)
    assert result.code in (1, 2)
    assert state(aws) == NOTHING
    return result.err


class TestRefused:
    """Before anything is made."""

    def test_a_model_that_does_not_fit(self, aws: Aws, image: str) -> None:
        upload(aws, {**SETTINGS, "n_layer": 56})
        said = refusal(aws, image)
        assert "the model does not fit ml.g4dn.2xlarge" in said
        assert "--instance-type ml.g6e.xlarge" in said
        assert deploy(image, "--instance-type", "ml.g6e.xlarge").code == 0

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--instance-type", "ml.g5.3xlarge"], "no such instance type; did you mean"),
            (["--instance-type", "ml.inf2.xlarge"], "needs an NVIDIA GPU"),
            (["--volume-gb", "100"], "has a disk of its own"),
            (["--env", "GPTJ_FRONTEND=http"], "did you mean GPTJ_FRONT?"),
            (["--env", "TENSOR_PARALLEL_DEGREE=4"], "must be 1"),
            (["--traffic", "canary"], "needs --count 2"),
            (["--subnets", "subnet-1"], "both or neither"),
            (["--async-output", "answers"], "not an S3 address"),
            (["--async-concurrency", "2"], "only with --async-output"),
            (["--count", "0"], "must be a whole number from 1"),
            (["--rollback-latency-s", "-1"], "must be a number from 0"),
            (["--tag", "gptj-serve:x=1"], "gptj-serve:"),
            (["--role", "again"], ""),
            (["a_b"], "letters, digits and single hyphens"),
        ],
    )
    def test_options(self, aws: Aws, image: str, arguments: list[str], said: str) -> None:
        if arguments == ["--role", "again"]:
            assert deploy(image, "--create-role").code == 2  # one of the two
            return
        assert said in refusal(aws, image, *arguments)

    def test_what_is_missing(self, aws: Aws, image: str) -> None:
        result = deploy(image, role=None)
        assert result.code == 2
        assert "--create-role makes one" in result.err
        assert "--image is missing" in deploy("").err
        assert "--model-data is missing" in deploy(image, data="").err
        assert state(aws) == NOTHING

    def test_images(self, aws: Aws, image: str) -> None:
        where, digest = image.split("@")
        assert "there is no such image" in refusal(aws, f"{where}:nothing")
        assert "there is no such image" in refusal(aws, f"{where}@sha256:{'0' * 64}")
        assert "there is no such repository" in refusal(aws, image.replace("/gptj-serve", "/other"))
        assert "not an image in ECR" in refusal(aws, "gptj-serve:latest")
        assert "SageMaker wants both in one" in refusal(aws, image.replace("eu-west-1", "us-east-1"))
        assert digest in deploy(f"{where}:one@{digest}", "--dry-run").out

    @pytest.mark.parametrize(
        ("media_type", "said"),
        [
            ("application/vnd.oci.image.manifest.v1+json", "it is an image with an OCI manifest"),
            ("application/vnd.oci.image.index.v1+json", "it is an index of several images"),
            ("application/vnd.docker.distribution.manifest.list.v2+json", "it is an index of several images"),
        ],
    )
    def test_images_that_sagemaker_refuses(self, aws: Aws, image: str, media_type: str, said: str) -> None:
        other = push_image(aws, "other", media_type)
        for address in (other, other.split("@")[0] + ":other"):
            refused = refusal(aws, address)
            assert said in refused
            assert media_type in refused
            assert "--provenance=false" in refused
        assert image != other

    def test_images_by_their_addresses_for_ipv6(self, image: str) -> None:
        other = image.replace("dkr.ecr.eu-west-1.amazonaws.com", "dkr-ecr.eu-west-1.on.aws")
        assert other != image
        assert f'"Image": "{image}"' in deploy(other, "--dry-run").out

    def test_model_data(self, aws: Aws, image: str) -> None:
        s3 = aws.client("s3")
        assert "nothing is there" in refusal(aws, image, data=f"s3://{BUCKET}/other/")
        assert "there is no bucket" in refusal(aws, image, data="s3://nobodys/gpt-j-6b/")
        assert "not an S3 address" in refusal(aws, image, data="/models")
        s3.put_object(Bucket=BUCKET, Key="other/weights", Body=b"x")
        assert "there is no config.json" in refusal(aws, image, data=f"s3://{BUCKET}/other")
        s3.put_object(Bucket=BUCKET, Key="lora/adapter_config.json", Body=b"{}")
        assert "an adapter, not a whole model" in refusal(aws, image, data=f"s3://{BUCKET}/lora/")
        s3.put_object(Bucket=BUCKET, Key="bert/config.json", Body=b'{"model_type": "bert"}')
        assert "supported: GPTJForCausalLM" in refusal(aws, image, data=f"s3://{BUCKET}/bert/")
        s3.put_object(Bucket=BUCKET, Key="bad/config.json", Body=b"nonsense")
        assert "bad/config.json" in refusal(aws, image, data=f"s3://{BUCKET}/bad/")
        s3.put_object(Bucket=BUCKET, Key="gpt-j-6b/", Body=b"")
        assert "stands for a folder" in refusal(aws, image)

    def test_an_upload_that_did_not_end_is_remarked_on(self, aws: Aws, image: str) -> None:
        assert "is it whole?" in deploy(image, "--dry-run").err
        aws.client("s3").put_object(Bucket=BUCKET, Key="gpt-j-6b/gptj-serve.json", Body=b"{}")
        assert "is it whole?" not in deploy(image, "--dry-run").err

    def test_a_bucket_elsewhere(self, aws: Aws, image: str) -> None:
        where = {"CreateBucketConfiguration": {"LocationConstraint": "us-west-2"}}
        boto3.client("s3", region_name="us-west-2").create_bucket(Bucket="elsewhere", **where)
        assert "--region us-west-2" in refusal(aws, image, data="s3://elsewhere/gpt-j-6b/")

    def test_a_model_that_may_not_be_read_is_taken_for_gpt_j_6b(self, image: str) -> None:
        with failing("HeadBucket", "403", "Forbidden"):
            result = deploy(image, "--dry-run")
        assert "may not be read from here" in result.err
        assert '"ModelDataDownloadTimeoutInSeconds": 600' in result.out

    def test_another_instance_type_while_it_scales_by_itself(self, aws: Aws, image: str) -> None:
        deploy(image)
        aws.client("application-autoscaling").register_scalable_target(
            ServiceNamespace="sagemaker",
            ResourceId="endpoint/gpt-j/variant/main",
            ScalableDimension="sagemaker:variant:DesiredInstanceCount",
            MinCapacity=1,
            MaxCapacity=2,
        )
        before = state(aws)
        result = deploy(image, "--instance-type", "ml.g5.2xlarge")
        assert result.code == 1
        assert "scales by itself" in result.err
        assert state(aws) == before
        assert deploy(push_image(aws, "two")).code == 0


class TestInstanceTypes:
    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("ml.p3.2xlarge", "AWS is retiring the p3 family"),
            (
                "ml.g4dn.12xlarge",
                "has 4 GPUs, and the service uses one of them: ml.g4dn.xlarge does the same",
            ),
            ("ml.p4d.24xlarge", "has 8 GPUs, and the service uses one of them."),
            ("ml.m5.xlarge", "for tests with a small model only"),
        ],
    )
    def test_warnings(self, image: str, name: str, said: str) -> None:
        result = deploy(image, "--instance-type", name, "--dry-run")
        assert result.code == 0
        assert said in result.err


def test_print_iam_needs_no_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploy_module, "connect", None)
    result = deploy("", "--print-iam", "--json")
    assert {"deploy", "execution-role"} <= set(result.json)
    one = json.loads(deploy("", "--print-iam", "deploy").out)
    assert one == result.json["deploy"]
    assert "there are push, " in deploy("", "--print-iam", "nothing").err
