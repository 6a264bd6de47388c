"""A target that is a SageMaker endpoint. boto3 is imported only when an endpoint is measured."""

import asyncio
import json
import threading
import time
from concurrent.futures import Future
from typing import Any

from gptj_serve.benchmark.targets import completions
from gptj_serve.benchmark.targets.target import Query, TimedAnswer, document
from gptj_serve.errors import StartupError

MAX_CONCURRENCY = 64
JSON = "application/json"
UNKNOWN_INSTANCE = "SageMaker endpoint on an unknown instance type"


class SageMakerTarget:
    """Meets `gptj_serve.benchmark.targets.target.Target`.

    Args:
        name: The target's name in results.
        endpoint: The endpoint's name.
        client: boto3's client of ``sagemaker-runtime``, made by `connect`.
    """

    def __init__(self, name: str, endpoint: str, client: Any) -> None:
        self.name = name
        self._endpoint = endpoint
        self._client = client

    async def ask(self, ask: Query) -> TimedAnswer:
        """See `Target`. Each call has a daemon thread: none waits for a free one, and our end for none."""
        future: Future[TimedAnswer] = Future()
        future.set_running_or_notify_cancel()

        def work() -> None:
            try:
                future.set_result(self._ask(ask))
            except Exception as error:
                future.set_exception(error)

        threading.Thread(target=work, name="endpoint", daemon=True).start()
        return await asyncio.wrap_future(future)

    async def close(self) -> None:
        """See `Target`."""

    def _ask(self, ask: Query) -> TimedAnswer:
        from botocore.exceptions import BotoCoreError, ClientError
        from urllib3.exceptions import HTTPError

        request = {"EndpointName": self._endpoint, "ContentType": JSON, "Body": json.dumps(document(ask))}
        asked_s = time.monotonic()
        try:
            return self._stream(request, asked_s) if ask.stream else self._whole(request, asked_s)
        except ClientError as error:
            seconds = time.monotonic() - asked_s
            return TimedAnswer(asked_s, seconds, _status(error.response), error=_message(error.response))
        except (BotoCoreError, HTTPError) as error:  # HTTPError comes of a stream that is cut off
            return TimedAnswer(asked_s, time.monotonic() - asked_s, 0, error=str(error))

    def _whole(self, request: dict[str, str], asked_s: float) -> TimedAnswer:
        body = self._client.invoke_endpoint(**request)["Body"].read()
        return completions.timed_answer(asked_s, time.monotonic(), body, None)

    def _stream(self, request: dict[str, str], asked_s: float) -> TimedAnswer:
        body, event_s = b"", []
        for part in self._client.invoke_endpoint_with_response_stream(**request)["Body"]:
            now_s = time.monotonic()
            data = part["PayloadPart"]["Bytes"]
            event_s += [now_s] * (body[-1:] + data).count(b"\n\n")
            body += data
        return completions.timed_answer(asked_s, time.monotonic(), body, event_s)


def instance_type(endpoint: str) -> str:
    """The instance types of an endpoint, as far as this account may ask.

    Raises:
        StartupError: As `connect`.
    """
    client = connect(60, "sagemaker")
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        config = client.describe_endpoint(EndpointName=endpoint)["EndpointConfigName"]
        variants = client.describe_endpoint_config(EndpointConfigName=config)["ProductionVariants"]
    except (BotoCoreError, ClientError):
        return UNKNOWN_INSTANCE
    return ", ".join(sorted({variant.get("InstanceType", "serverless") for variant in variants}))


def connect(timeout_s: float, service: str = "sagemaker-runtime") -> Any:
    """boto3's client of a service, with region and credentials from AWS's own configuration.

    Raises:
        StartupError: boto3 is not installed, or there is no region.
    """
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError:
        raise StartupError("--endpoint needs the package boto3") from None
    # no retries: they would make two calls of one measurement
    config = Config(
        read_timeout=timeout_s, max_pool_connections=MAX_CONCURRENCY, retries={"total_max_attempts": 1}
    )
    try:
        return boto3.client(service, config=config)
    except BotoCoreError as error:
        raise StartupError(f"--endpoint: {error}") from None


def _status(response: dict[str, Any]) -> int:
    """The container's own status if it is there, else SageMaker's; errors in streams have none."""
    known = response.get("OriginalStatusCode") or response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return int(known or 500)


def _message(response: dict[str, Any]) -> str:
    error = response["Error"]
    original = completions.read(str(response.get("OriginalMessage", "")).encode())
    text = completions.error_text(original) if original else error.get("Message", "")
    return f"{error.get('Code', 'error')}: {text}"[: completions.MAX_ERROR_CHARS]
