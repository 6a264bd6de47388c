"""What a multi-model-server worker runs: the toolkit's transformer with answers of our own.

The toolkit's `Transformer.transform` would answer an error with its traceback, and only set the status of a
batch's first request; this one gives each request its own status and a JSON error.
"""

import gc
import hmac
import logging
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from sagemaker_inference.transformer import Transformer

from gptj_serve import logs, run_dir
from gptj_serve.errors import is_failure
from gptj_serve.serving import mms, schemas
from gptj_serve.serving.body import decoded
from gptj_serve.serving.call import Call
from gptj_serve.serving.service import ErrorAnswer
from gptj_serve.serving.start import start_failures
from gptj_serve.settings import Settings


@dataclass(slots=True)
class RequestContext:
    """The context that functions of ``inference.py`` get.

    Attributes:
        request_id: The model server's id of the request, also its ``x-request-id`` header.
        accept: The ``Accept`` header.
        call: The call, once the body has been parsed, for the log of a request that fails later.
    """

    request_id: str
    accept: str | None
    call: Call | None = None


class GptjTransformer(Transformer):  # type: ignore[misc]
    """Runs ``input_fn``, ``predict_fn`` and ``output_fn`` of ``inference.py`` for each request."""

    warm_up_key: bytes

    def transform(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[bytes]:
        """Answer each request of a batch separately; nothing is raised."""
        return [self._answer(context, index, one) for index, one in enumerate(data)]

    def _answer(self, context: Any, index: int, request: Mapping[str, Any]) -> bytes:
        headers = {name.lower(): value for name, value in context.get_all_request_header(index).items()}
        key = headers.get(run_dir.WARM_UP_HEADER, "").encode("utf-8", "replace")
        is_warm_up = hmac.compare_digest(key, self.warm_up_key)
        about = RequestContext(context.get_request_id(index), headers.get("accept"))
        try:
            body, content_type = self._run(request, headers, about)
            answer = ErrorAnswer(200, body, content_type, {})
        except BaseException as error:
            if not is_failure(error):
                raise
            schema = schemas.guess(bytes(request.get("body") or b""))
            answer = self._model.render_error(error, about.request_id, about.call, schema, not is_warm_up)
        context.set_response_status(code=answer.status, phrase=HTTPStatus(answer.status).phrase, idx=index)
        context.set_response_content_type(index, answer.content_type)
        for name, value in answer.headers.items():
            context.set_response_header(index, name, value)
        return answer.body

    def _run(self, request: Mapping[str, Any], headers: Mapping[str, str], about: RequestContext) -> Any:
        # the server splits a form into its fields, so there is no "body" then
        body = bytes(request.get("body") or b"")
        body = decoded(body, headers.get("content-encoding"), self._model.max_payload_bytes)
        self._context = about  # the toolkit passes this to functions that take a context
        received = self._run_handler_function(self._input_fn, body, headers.get("content-type"))
        reply = self._run_handler_function(self._predict_fn, received, self._model)
        return self._run_handler_function(self._output_fn, reply, about.accept)


_transformer = GptjTransformer()


def handle(data: Sequence[Mapping[str, Any]] | None, context: Any) -> list[bytes] | None:
    """The server's entry point; called once without data before the first request."""
    if data is None:
        _initialize(context)
        return None
    return _transformer.transform(data, context)


def _initialize(context: Any) -> None:
    logs.configure("front", Settings.from_env(os.environ).log_level)
    logging.getLogger("mms.service").setLevel(logging.WARNING)  # it logs a line of metrics for each request
    logging.getLogger().handlers[0].addFilter(_is_worth_a_line)
    _end_with_server()
    directory = Path(os.environ[run_dir.ENV_NAME])
    (directory / mms.WORKER_PID_FILE).write_text(str(os.getpid()))
    _transformer.warm_up_key = run_dir.warm_up_key(directory).encode()
    with start_failures(directory):
        model_dir = context.system_properties.get("model_dir")
        _transformer.validate_and_initialize(model_dir=model_dir, context=context)
    gc.collect()
    gc.freeze()  # the workers are forks, in which a collection would copy every page that they share


def _end_with_server() -> None:
    """End this process, which listens for the server for ever, when the server is gone.

    A timer looks each second. It is no thread, since the process is forked for every worker; those notice
    that their connection ends.
    """
    server_pid = os.getppid()

    def look(*_: object) -> None:
        if os.getppid() != server_pid:
            os._exit(0)

    signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, 1, 1)


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Leave out the worker's chatter, and the server's orderly end, which the worker reports as a failure."""
    error = record.exc_info[1] if record.exc_info else None
    chatter = record.name == "root" and record.levelno < logging.WARNING
    return not chatter and "Frontend disconnected" not in str(error)
