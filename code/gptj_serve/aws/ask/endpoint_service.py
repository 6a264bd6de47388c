"""A service behind a SageMaker endpoint: whole answers, streams, and why an endpoint does not answer."""

import contextlib
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, EventStreamError, ReadTimeoutError
from urllib3.exceptions import HTTPError

from gptj_serve.aws.ask.answer import refused
from gptj_serve.aws.ask.question import Question
from gptj_serve.aws.common.clients import CONFIG, Aws
from gptj_serve.aws.common.errors import CommandError, explain
from gptj_serve.aws.common.plan import Action
from gptj_serve.aws.endpoint.lookup import describe_endpoint

_SERVES = ("InService", "Updating", "SystemUpdating", "RollingBack")


@dataclass(frozen=True, slots=True)
class EndpointService:
    """A SageMaker endpoint.

    Attributes:
        aws: The account and region.
        name: The endpoint's name.
        component: The inference component to ask, if the endpoint has several.
        timeout_s: Seconds without a byte after which a call is given up.
    """

    aws: Aws
    name: str
    component: str | None
    timeout_s: float

    def action(self, question: Question) -> Action:
        """The call that asks a question."""
        operation = "invoke_endpoint_with_response_stream" if question.stream else "invoke_endpoint"
        component = {"InferenceComponentName": self.component} if self.component else {}
        request = {"ContentType": question.content_type, "Body": question.body, **component}
        return Action("sagemaker-runtime", operation, {"EndpointName": self.name, **request})

    def ask(self, question: Question) -> bytes:
        """The whole answer.

        Raises:
            Refused: The service answered with an error.
            CommandError: The endpoint does not answer, or AWS refuses.
        """
        with self.explained(), contextlib.closing(self._call(question)["Body"]) as body:
            return bytes(body.read())

    def stream(self, question: Question) -> Generator[bytes, None, None]:
        """The answer piece by piece, as it comes; raises as `ask`. Closing it ends the connection."""
        with self.explained(), contextlib.closing(self._call(question)["Body"]) as events:
            for event in events:
                yield event["PayloadPart"]["Bytes"]

    def client(self) -> Any:
        """The runtime's client. It has no retries, because a model would generate twice."""
        once = Config(read_timeout=self.timeout_s, retries={"mode": "standard", "total_max_attempts": 1})
        return self.aws.session.client("sagemaker-runtime", config=CONFIG.merge(once))

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Turn what a call raises into plain words."""
        try:
            yield
        except EventStreamError as error:
            raise _broken_stream(error) from error
        except ClientError as error:
            raise self._refusal(error) from error
        except ReadTimeoutError:
            raise CommandError(
                f"{self.name} sent nothing for {self.timeout_s:g} s", "--timeout takes more seconds"
            ) from None
        except HTTPError as error:  # errors while a body is read come from urllib3, not from botocore
            raise CommandError(f"the connection to {self.name} broke: {error}") from None

    def _call(self, question: Question) -> Mapping[str, Any]:
        try:
            return self._send(question)
        except ClientError as error:
            component = None if self.component else self._only_component(error)
            if component is None:
                raise
        # a call that was refused for lack of a name has not been asked yet
        return replace(self, component=component)._send(question)

    def _send(self, question: Question) -> Mapping[str, Any]:
        action = self.action(question)
        answer: Mapping[str, Any] = getattr(self.client(), action.operation)(**action.request)
        return answer

    def _only_component(self, error: ClientError) -> str | None:
        """The only inference component of an endpoint that wants one to be named."""
        message = error.response.get("Error", {}).get("Message", "")
        if not _is_invalid(error) or "inference component" not in message.lower():
            return None
        try:
            listed = self.aws.client("sagemaker").list_inference_components(EndpointNameEquals=self.name)
        except (ClientError, BotoCoreError):
            return None
        names = [one["InferenceComponentName"] for one in listed["InferenceComponents"]]
        return names[0] if len(names) == 1 else None

    def _refusal(self, error: ClientError) -> CommandError:
        code = error.response.get("Error", {}).get("Code", "")
        message = error.response.get("Error", {}).get("Message", "")
        if code == "ModelError":
            return _model_error(error.response)
        if code == "ModelNotReadyException":
            return CommandError(f"{self.name} is not ready: {message}", "try again in some seconds")
        if not _is_invalid(error):
            return explain(error)
        return self.trouble() or CommandError(f"{self.name}: {message}", _hint(message))

    def trouble(self) -> CommandError | None:
        """Why the endpoint takes no requests at all; None if it should take them, or if we may not look."""
        try:
            found = describe_endpoint(self.aws.client("sagemaker"), self.name)
        except (ClientError, BotoCoreError):
            return None
        if found is None:
            return CommandError(
                f"there is no endpoint {self.name} in {self.aws.region}",
                "`scripts/status` lists what there is; --region and --profile choose where",
            )
        status = found["EndpointStatus"]
        if status in _SERVES:
            return None
        reason = f": {found['FailureReason']}" if found.get("FailureReason") else ""
        return CommandError(
            f"the endpoint {self.name} is not in service, it is {status}{reason}",
            f"`scripts/status {self.name}` shows how it gets on",
        )


def _is_invalid(error: ClientError) -> bool:
    return error.response.get("Error", {}).get("Code") in ("ValidationError", "ValidationException")


def _model_error(response: Mapping[str, Any]) -> CommandError:
    """The container's own answer, without the words that SageMaker puts around it."""
    status = int(response.get("OriginalStatusCode", 0)) or 500
    logs = response.get("LogStreamArn")
    hint = f"its log: {logs}" if logs and status >= 500 else None
    return refused(status, response.get("OriginalMessage", ""), hint)


def _broken_stream(error: EventStreamError) -> CommandError:
    details = error.response.get("Error", {})  # botocore loses the exception's ErrorCode
    return CommandError(f"the stream broke off ({details.get('Code')}): {details.get('Message')}")


def _hint(message: str) -> str | None:
    lowered = message.lower()
    if "async" in lowered:
        return "it answers into S3: pass --async"
    if "inference component" in lowered:
        return "--component names one, `scripts/status` shows them; one without copies has to wake up first"
    return None
