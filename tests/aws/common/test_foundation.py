"""What the commands share: how they say what is wrong, what they show, how they end."""

import argparse
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError, ParamValidationError

from gptj_serve.aws.common import command, console, plan
from gptj_serve.aws.common.clients import Aws, connect
from gptj_serve.aws.common.console import Console
from gptj_serve.aws.common.errors import CommandError, Interrupted, UsageError, explain
from gptj_serve.aws.common.plan import Action, Program
from support.aws.run_commands import ACCESS_KEY, SECRET_KEY, Result
from support.server import ROOT


def refused(code: str, message: str, operation: str = "CreateRepository") -> CommandError:
    """What a refusal is explained as."""
    return explain(ClientError({"Error": {"Code": code, "Message": message}}, operation))


def run(handler: Callable[[argparse.Namespace, Console], None], *arguments: str) -> Result:
    """A command made of a handler, in this process."""
    parser = command.make_parser("try", "Tries.", "scripts/try --json")
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = command.run(parser, handler, arguments)
    return Result(code, out.getvalue(), err.getvalue())


class TestErrors:
    def test_a_refused_call_names_the_permission_and_the_resource(self) -> None:
        arn = "arn:aws:ecr:eu-west-1:123456789012:repository/gptj-serve"
        said = refused(
            "AccessDeniedException",
            "User: arn:aws:iam::123456789012:user/me is not authorized to perform: ecr:CreateRepository "
            f"on resource: {arn} because no identity-based policy allows the ecr:CreateRepository action",
        )
        assert said.message == f"permission is missing: ecr:CreateRepository on {arn}"
        assert "--print-iam" in str(said.hint)

    @pytest.mark.parametrize(
        ("why", "said", "hint"),
        [
            (
                "with an explicit deny in a service control policy",
                "is denied by a service control policy",
                "deny wins",
            ),
            (
                "with an explicit deny in a service control policy: arn:aws:organizations::1:policy/o-1/p-1",
                "is denied by a service control policy arn:aws:organizations::1:policy/o-1/p-1",
                "deny wins",
            ),
            (
                "with an explicit deny in an identity-based policy",
                "is denied by a identity-based policy",
                "deny wins",
            ),
            (
                "with an explicit deny in a permissions boundary",
                "is denied by a permissions boundary",
                "deny",
            ),
            (
                "because no service control policy allows the sagemaker:CreateEndpoint action",
                ": no service control policy allows it",
                "--print-iam",
            ),
            (
                "because no permissions boundary allows the sagemaker:CreateEndpoint action",
                ": no permissions boundary allows it",
                "--print-iam",
            ),
        ],
    )
    def test_whose_policy_refuses(self, why: str, said: str, hint: str) -> None:
        who = "User: arn:aws:iam::123456789012:user/me is not authorized to perform: sagemaker:CreateEndpoint"
        arn = "arn:aws:sagemaker:eu-west-1:123456789012:endpoint/gpt-j"
        error = refused("AccessDeniedException", f"{who} on resource: {arn} {why}", "CreateEndpoint")
        assert f"sagemaker:CreateEndpoint on {arn}" in error.message
        assert error.message.endswith(said)
        assert hint in str(error.hint)

    def test_s3_refuses_without_saying_what(self) -> None:
        assert "s3:GetObject" in refused("403", "Forbidden", "HeadObject").message
        assert "s3:PutObject" in refused("AccessDenied", "Access Denied", "CreateMultipartUpload").message

    @pytest.mark.parametrize("code", ["ExpiredToken", "ExpiredTokenException"])
    def test_expired_credentials(self, code: str) -> None:
        assert refused(code, "The security token is expired").message == "the AWS credentials have expired"

    def test_throttling(self) -> None:
        assert "for now" in refused("ThrottlingException", "Rate exceeded").message

    @pytest.mark.parametrize("code", ["IncompleteSignature", "SignatureDoesNotMatch", "SomethingElse"])
    def test_no_credential_is_shown(self, code: str) -> None:
        leaky = f"Authorization=AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/20261101, Signature=0123abcd0123"
        said = refused(code, leaky).message
        assert ACCESS_KEY not in said
        assert "0123abcd0123" not in said

    def test_passwords_of_proxies_are_not_shown(self) -> None:
        said = explain(EndpointConnectionError(endpoint_url="https://me:secret@proxy:1/")).message
        assert "could not be reached" in said
        assert "secret" not in said

    def test_what_a_client_raises_without_a_region_credentials_or_an_endpoint(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(BotoCoreError) as caught:  # the address leads nowhere
            connect().account  # noqa: B018
        assert "could not be reached" in explain(caught.value).message
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(BotoCoreError) as caught:
            connect().account  # noqa: B018
        assert "credentials" in explain(caught.value).message
        monkeypatch.delenv("AWS_DEFAULT_REGION")
        with pytest.raises(CommandError, match="no AWS region"):
            connect()
        with pytest.raises(BotoCoreError) as caught:
            connect(profile="nobody")
        assert "nobody" in explain(caught.value).message


class TestClients:
    def test_account_region_and_one_client_a_service(self, aws: Aws) -> None:
        assert (aws.account, aws.region, aws.partition) == ("123456789012", "eu-west-1", "aws")
        assert aws.client("ecr") is aws.client("ecr")
        assert "gptj-serve/" in aws.client("ecr").meta.config.user_agent_extra

    def test_options_win_over_the_environment(self) -> None:
        assert connect("us-east-1").region == "us-east-1"

    @pytest.mark.parametrize("attempt", [1, 2])
    def test_each_test_starts_with_an_empty_account(self, aws: Aws, attempt: int) -> None:
        assert aws.client("ecr").describe_repositories()["repositories"] == []
        aws.client("ecr").create_repository(repositoryName=f"left-behind-{attempt}")


class TestPlan:
    def test_it_shows_every_request(self) -> None:
        steps = [
            Action("ecr", "create_repository", {"repositoryName": "one"}, "a place for it"),
            Program(("docker", "push", "one:a b")),
        ]
        assert plan.show(steps) == (
            "# a place for it\n"
            'ecr.create_repository {\n  "repositoryName": "one"\n}\n\n'
            "docker push 'one:a b'"
        )
        assert plan.show([]) == "Nothing to do."

    @pytest.mark.parametrize(
        ("request_", "complaint"),
        [
            ({}, "Missing required parameter"),
            ({"repositoryName": 1}, "Invalid type"),
            ({"repositoryName": "a"}, "Invalid length"),
            ({"repositoryName": "one", "nonsense": 1}, "Unknown parameter"),
        ],
    )
    def test_validation_finds_what_botocore_finds(self, request_: dict[str, object], complaint: str) -> None:
        with pytest.raises(ParamValidationError, match=complaint):
            plan.validate(Action("ecr", "create_repository", request_))

    def test_validation_of_what_is_right_and_of_what_there_is_not(self) -> None:
        plan.validate(Action("ecr", "create_repository", {"repositoryName": "one"}))
        with pytest.raises(ValueError, match="no operation make_repository"):
            plan.validate(Action("ecr", "make_repository"))

    def test_an_action_is_what_it_shows(self, aws: Aws) -> None:
        answer = Action("ecr", "create_repository", {"repositoryName": "one"}).apply(aws)
        assert answer["repository"]["repositoryName"] == "one"
        names = [one["repositoryName"] for one in aws.client("ecr").describe_repositories()["repositories"]]
        assert names == ["one"]


class TestConsole:
    def test_json_is_one_object_and_text_is_text(self) -> None:
        out = io.StringIO()
        Console(as_json=True, out=out).result({"a": 1}, "one")
        assert json.loads(out.getvalue()) == {"a": 1}
        out = io.StringIO()
        Console(out=out).result({"a": 1}, "one")
        assert out.getvalue() == "one\n"

    def test_without_a_terminal_a_transfer_is_lines(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(console, "LINES_EVERY_S", 0.0)
        err = io.StringIO()
        with Console(err=err).bar(2000, "one.bin") as add:
            threads = [threading.Thread(target=add, args=(500,)) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        lines = err.getvalue().splitlines()
        assert lines[0] == "one.bin: 500 B of 2.0 kB (25 %)"
        assert lines[-1] == "one.bin: 2.0 kB of 2.0 kB (100 %)"

    def test_on_a_terminal_it_is_a_bar(self) -> None:
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        err = Terminal()
        shown = Console(err=err)
        with shown.bar(2000, "one.bin") as add:
            add(2000)
            shown.progress("between")
        assert "one.bin: 100%" in err.getvalue()
        assert "between\n" in err.getvalue()


AGAIN = "Interrupted. Run the same command again: it goes on from here."


class TestEnds:
    def test_done(self) -> None:
        assert run(lambda _, shown: shown.result({"a": 1}, "one"), "--json") == Result(0, '{"a": 1}\n', "")

    @pytest.mark.parametrize(
        ("error", "code", "said"),
        [
            (CommandError("it is gone", "make it"), 1, "error: it is gone\n  make it\n"),
            (UsageError("--count: 3 is too many"), 2, "error: --count: 3 is too many\n"),
            (FileNotFoundError(2, "No such file", "x"), 1, "error: x: No such file\n"),
            (OSError("no room"), 1, "error: no room\n"),
            (Interrupted("It goes on by itself."), 130, "\nIt goes on by itself.\n"),
            # Python's own text, for a signal while a host's name was encoded
            (KeyboardInterrupt("encoding with 'idna' codec failed"), 130, f"\n{AGAIN}\n"),
        ],
    )
    def test_failed(self, error: BaseException, code: int, said: str) -> None:
        def fail(*_: object) -> None:
            raise error

        assert run(fail) == Result(code, "", said)

    def test_what_nobody_expected_is_one_line_and_no_traceback_unless_asked_for(self) -> None:
        def fail(*_: object) -> None:
            raise KeyError(f"AKIA{'X' * 16}")

        result = run(fail)
        assert result.code == 1
        assert result.err.startswith("error: KeyError: '(access key)'")
        assert "Traceback" not in result.err
        assert "Traceback" in run(fail, "--traceback").err

    def test_wrong_usage_and_help(self) -> None:
        assert run(lambda *_: None, "--nonsense").code == 2
        helped = run(lambda *_: None, "--help")
        assert helped.code == 0
        assert helped.out.endswith("examples:\n  scripts/try --json\n")

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_interrupted(self, number: signal.Signals) -> None:
        cleaned = []

        def wait(*_: object) -> None:
            try:
                signal.raise_signal(number)
            finally:
                cleaned.append(True)

        before = signal.getsignal(number)
        result = run(wait)
        assert (result.code, cleaned) == (130, [True])
        assert result.err == f"\n{AGAIN}\n"
        assert signal.getsignal(number) is before


def test_an_interrupted_import_is_quiet(tmp_path: Path) -> None:
    (tmp_path / "botocore.py").write_text("import signal, time\nsignal.raise_signal(signal.SIGINT)\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT / 'code'}"}
    argv = [sys.executable, "-m", "gptj_serve.aws", "push", "--help"]
    ran = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (-signal.SIGINT, "", "")


def test_the_environment_of_tests_reaches_no_real_account() -> None:
    credentials = boto3.Session().get_credentials()
    assert (credentials.access_key, credentials.secret_key) == (ACCESS_KEY, SECRET_KEY)
    assert boto3.client("ecr").meta.endpoint_url == "http://127.0.0.1:9"
