"""Builds what is asked of a service, the body of one request, from the command line. There is no I/O here."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gptj_serve.aws.common.errors import UsageError

JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Question:
    """One request for text.

    Attributes:
        body: The bytes that are sent.
        content_type: The body's content type.
        stream: The answer should come token by token.
    """

    body: bytes
    content_type: str
    stream: bool

    @property
    def text(self) -> str:
        """The body as text for people to read."""
        return self.body.decode("utf-8", "replace")


def of_text(text: str, parameters: Mapping[str, Any], stream: bool) -> Question:
    """A question in the Hugging Face schema.

    Args:
        text: The prompt.
        parameters: The parameters, named as in the service's API.
        stream: The answer should come token by token.
    """
    document = {"inputs": text, "parameters": dict(parameters), "stream": stream}
    return Question(json.dumps(document).encode(), JSON, stream)


def of_body(body: bytes, content_type: str, stream: bool) -> Question:
    """A question that a body asks in any schema; ``stream`` is put into it if that is wanted.

    Raises:
        UsageError: The answer should stream, but the body is no JSON object.
    """
    document: Any = None
    if content_type.partition(";")[0].strip() == JSON:
        try:
            document = json.loads(body)
        except ValueError as error:
            if stream:
                raise UsageError(f"--stream: the body of --body is no JSON: {error}") from None
    if not stream:
        # the service can say better than this command what is wrong with a body
        asks_itself = isinstance(document, dict) and document.get("stream") is True
        return Question(body, content_type, asks_itself)
    if not isinstance(document, dict):
        raise UsageError("--stream: the body of --body must be a JSON object")
    return Question(json.dumps({**document, "stream": True}).encode(), content_type, True)


def sampling(given: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the parameters of a request.

    Args:
        given: Parameters with options of their own; None where the option was left out.
        parameters: The parameters of ``--parameters``, over which options win.

    Returns:
        The merged parameters. Sampling is on if an option has a meaning only then, and off at temperature 0.
    """
    chosen = {**parameters, **{name: value for name, value in given.items() if value is not None}}
    if chosen.get("temperature") == 0:
        del chosen["temperature"]
        return {"do_sample": False, **chosen}
    samples = [given.get(name) is not None for name in ("temperature", "top_p", "top_k", "seed")]
    return {"do_sample": True, **chosen} if any(samples) else chosen
