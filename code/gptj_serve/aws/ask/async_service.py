"""A service behind an asynchronous endpoint: the question goes through S3, and so does the answer."""

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gptj_serve.aws.ask.answer import refused
from gptj_serve.aws.ask.endpoint_service import EndpointService
from gptj_serve.aws.ask.question import Question
from gptj_serve.aws.common.console import Console
from gptj_serve.aws.common.errors import CommandError, Interrupted
from gptj_serve.aws.common.plan import Action
from gptj_serve.aws.common.s3 import S3Url, read_object
from gptj_serve.aws.endpoint.lookup import describe_config, describe_endpoint

_POLL_S, _MAX_POLL_S = 0.5, 5.0
_LOOK_S = 15.0
"""Seconds between two looks at the endpoint, which may fail or be deleted while it is asked."""


@dataclass(frozen=True, slots=True)
class AsyncService:
    """An asynchronous endpoint.

    Attributes:
        service: The endpoint.
        timeout_s: Seconds that an answer may take, the wait for an instance included.
    """

    service: EndpointService
    timeout_s: float

    def actions(self, question: Question, name: str) -> list[Action]:
        """The calls that ask a question. It is put below the answers, where the endpoint's role can read it.

        Args:
            question: The question.
            name: Name of the object that the question is put into.

        Raises:
            CommandError: The endpoint is not there, or not asynchronous.
        """
        place = S3Url.parse(self._output()["S3OutputPath"], "S3OutputPath")
        url = S3Url(place.bucket, f"{place.key.rstrip('/')}/requests/{name}.json".lstrip("/"))
        content = {"ContentType": question.content_type}
        put = {"Bucket": url.bucket, "Key": url.key, "Body": question.body, **content}
        ask = {"EndpointName": self.service.name, "InputLocation": str(url), **content}
        return [
            Action("s3", "put_object", put, "the question"),
            Action("sagemaker-runtime", "invoke_endpoint_async", ask),
        ]

    def ask(self, question: Question, console: Console) -> bytes:
        """Ask, and wait for the answer.

        Raises:
            Refused: The service answered with an error.
            CommandError: The endpoint takes no requests, there was no answer in time, or AWS refuses.
        """
        put, ask = self.actions(question, uuid.uuid4().hex)
        if "S3FailurePath" not in self._output():
            console.progress(
                f"note: {self.service.name} tells nobody when a request fails (no S3FailurePath), so "
                "that this waits until --timeout; scripts/deploy, run again, mends that"
            )
        aws = self.service.aws
        put.apply(aws)
        with self.service.explained():
            answer = self.service.client().invoke_endpoint_async(**ask.request)
        console.progress(f"Waiting for {answer['OutputLocation']}")
        try:
            body = self._wait(answer)
        except KeyboardInterrupt:
            raise Interrupted(f"The answer will be at {answer['OutputLocation']}") from None
        request = {"Bucket": put.request["Bucket"], "Key": put.request["Key"]}
        aws.client("s3").delete_object(**request)
        return body

    def _wait(self, answer: Mapping[str, Any]) -> bytes:
        aws, poll_s = self.service.aws, _POLL_S
        output = S3Url.parse(answer["OutputLocation"], "the answer's place")
        failure = answer.get("FailureLocation")
        deadline_s = time.monotonic() + self.timeout_s
        look_s = time.monotonic() + _LOOK_S
        while time.monotonic() < deadline_s:
            body = read_object(aws, output)
            if body is not None:
                return body
            told = read_object(aws, S3Url.parse(failure, "the failure's place")) if failure else None
            if told is not None:
                raise refused(0, told, f"the whole of it is at {failure}")
            if time.monotonic() >= look_s:
                if trouble := self.service.trouble():
                    raise trouble
                look_s = time.monotonic() + _LOOK_S
            time.sleep(min(poll_s, max(0.0, deadline_s - time.monotonic())))
            poll_s = min(1.5 * poll_s, _MAX_POLL_S)
        raise CommandError(
            f"{self.service.name} gave no answer within {self.timeout_s:g} s",
            f"it will be at {output}; an endpoint at zero instances takes minutes to start one",
        )

    def _output(self) -> Mapping[str, str]:
        """The S3 prefixes of answers and of failures."""
        sagemaker, name = self.service.aws.client("sagemaker"), self.service.name
        with self.service.explained():
            found = describe_endpoint(sagemaker, name)
            config = describe_config(sagemaker, found["EndpointConfigName"]) if found else None
        if config is None:
            raise CommandError(f"there is no endpoint {name} in {self.service.aws.region}")
        if "AsyncInferenceConfig" not in config:
            raise CommandError(f"{name} is a real-time endpoint", "leave --async out")
        output: Mapping[str, str] = config["AsyncInferenceConfig"]["OutputConfig"]
        return output
