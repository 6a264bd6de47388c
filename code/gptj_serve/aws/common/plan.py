"""What a command is about to do, as data: ``--dry-run`` shows it, tests check it, then it is done."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from botocore import xform_name
from botocore.exceptions import ParamValidationError
from botocore.session import get_session
from botocore.validate import ParamValidator

from gptj_serve.aws.common.clients import Aws

MAX_LINE = 110
"""The longest line that a program is shown on; a longer one is shown with an argument a line."""


@dataclass(frozen=True)
class Action:
    """A call of AWS.

    Attributes:
        service: boto3's name of a client, for example ``sagemaker``.
        operation: That client's method, for example ``create_model``.
        request: The method's arguments.
        note: What the call is for; it is shown, not sent.
    """

    service: str
    operation: str
    request: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    def apply(self, aws: Aws) -> dict[str, Any]:
        """Make the call.

        Returns:
            The answer.

        Raises:
            ClientError: AWS refused it.
            BotoCoreError: The call was not sent, or not answered.
        """
        answer: dict[str, Any] = getattr(aws.client(self.service), self.operation)(**self.request)
        return answer

    def to_dict(self) -> dict[str, Any]:
        """The fields that ``--json`` shows."""
        return {"service": self.service, "operation": self.operation, "request": dict(self.request)}

    def __str__(self) -> str:
        request = json.dumps(self.request, indent=2, default=_shown)
        return f"{self.service}.{self.operation} {request}"


@dataclass(frozen=True)
class Program:
    """A program to run.

    Attributes:
        argv: The program and its arguments.
        note: What the program is run for.
    """

    argv: tuple[str, ...]
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The fields that ``--json`` shows."""
        return {"program": list(self.argv)}

    def __str__(self) -> str:
        words = [shlex.quote(word) for word in self.argv]
        line = " ".join(words)
        return line if len(line) <= MAX_LINE else " \\\n  ".join(words)


Step = Action | Program


def show(steps: Sequence[Step]) -> str:
    """The plan as text for a person, with each step's note before it."""
    if not steps:
        return "Nothing to do."
    return "\n\n".join(f"# {step.note}\n{step}" if step.note else str(step) for step in steps)


def validate(action: Action) -> None:
    """Check an action as botocore does before it sends it; needs no network and no credentials.

    Raises:
        ParamValidationError: The request lacks a member, has one too many, or one of the wrong type or range.
        ValueError: The service has no such operation.
    """
    operations = _operations(action.service)
    if action.operation not in operations:
        raise ValueError(f"{action.service} has no operation {action.operation}")
    shape = operations[action.operation].input_shape
    if shape is None:
        if action.request:
            raise ParamValidationError(report=f"{action.operation} takes no parameters")
        return
    report = ParamValidator().validate(action.request, shape)
    if report.has_errors():
        raise ParamValidationError(report=report.generate_report())


@cache
def _operations(service: str) -> dict[str, Any]:
    model = get_session().get_service_model(service)
    return {xform_name(name): model.operation_model(name) for name in model.operation_names}


def _shown(value: object) -> str:
    if isinstance(value, bytes):
        return f"({len(value)} bytes)"
    return str(value)
