"""The functions that sagemaker-inference calls for each request, in this order.

The model itself lives in the engine process; what is "loaded" here is a connection to it.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from gptj_serve import run_dir
from gptj_serve.serving import schemas
from gptj_serve.serving.call import Call
from gptj_serve.serving.client import EngineClient
from gptj_serve.serving.mms_handler import RequestContext
from gptj_serve.serving.parsing import Body, parse_in_worker
from gptj_serve.serving.service import Result, Service
from gptj_serve.serving.templates.client import TemplateClient
from gptj_serve.serving.text import Tokenizer
from gptj_serve.serving.tokenizing import PreparedTokenizer
from gptj_serve.settings import Settings


@dataclass(frozen=True, slots=True)
class Received:
    """A request as it came, and when."""

    body: bytes
    content_type: str | None
    arrived_s: float


@dataclass(frozen=True, slots=True)
class Reply:
    """A finished request."""

    service: Service
    call: Call
    result: Result


def model_fn(model_dir: str) -> Service:  # noqa: ARG001 - the engine says where its model is
    """Make the service that turns text into token ids and asks the engine.

    Raises:
        StartupError: The model has no tokenizer that we can read.
    """
    settings = Settings.from_env(os.environ)
    directory = Path(os.environ[run_dir.ENV_NAME])
    client = EngineClient(run_dir.engine_socket(directory))
    tokenizer = Tokenizer.of(PreparedTokenizer.load(run_dir.tokenizer(directory)))
    # it connects when it is first used: the server forks this process for its workers, each has its own
    return Service(
        client,
        tokenizer,
        settings.max_payload_mb * 1024 * 1024,
        settings.request_timeout_s,
        max_queue=settings.max_queue,
        template=TemplateClient(run_dir.template_socket(directory)),
    )


def input_fn(body: bytes, content_type: str | None) -> Received:
    """Take the request as it came; what it means depends on the model, which `predict_fn` gets."""
    return Received(body, content_type, time.monotonic())


def predict_fn(received: Received, service: Service, context: RequestContext) -> Reply:
    """Parse the request and generate. Raises `ServingError`."""
    directory = Path(os.environ[run_dir.ENV_NAME])
    body = Body(received.body, received.content_type, context.accept, received.arrived_s, context.request_id)
    context.call = call = parse_in_worker(service, schemas.read, body, directory)
    return Reply(service, call, service.run(call, context.request_id))


def output_fn(reply: Reply, accept: str | None) -> tuple[bytes, str]:  # noqa: ARG001 - settled by the call
    """The answer's body and content type."""
    return reply.service.render(reply.call, reply.result)
