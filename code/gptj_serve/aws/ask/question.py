"""What is asked of a service: the body of one request, from the command line. No I/O."""

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
        body: As it is sent.
        content_type: Of the body.
        stream: The answer should come token by token.
    """

    body: bytes
    content_type: str
    stream: bool

    @property
    def text(self) -> str:
        """The body for people."""
        return self.body.decode("utf-8", "replace")


def of_text(text: str, parameters: Mapping[str, Any], stream: bool) -> Question:
    """Ask in the Hugging Face schema.

    Args:
        text: The prompt.
        parameters: As the service's API names them.
        stream: The answer should come token by token.
    """
    document = {"inputs": text, "parameters": dict(parameters), "stream": stream}
    return Question(json.dumps(document).encode(), JSON, stream)


def of_body(body: bytes, content_type: str, stream: bool) -> Question:
    """Ask what a body says, in any schema; ``stream`` is put into it if it is asked for.

    Raises:
        UsageError: It should stream, and is no JSON object.
    """
    document: Any = None
    if content_type.partition(";")[0].strip() == JSON:
        try:
            document = json.loads(body)
        except ValueError as error:
            if stream:
                raise UsageError(f"--stream: the body of --body is no JSON: {error}") from None
    if not stream:
        # the service says better than this command what is wrong with a body
        asks_itself = isinstance(document, dict) and document.get("stream") is True
        return Question(body, content_type, asks_itself)
    if not isinstance(document, dict):
        raise UsageError("--stream: the body of --body must be a JSON object")
    return Question(json.dumps({**document, "stream": True}).encode(), content_type, True)


def sampling(given: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a request.

    Args:
        given: Those with options of their own; None where the option was left out.
        parameters: Those of ``--parameters``; options win.

    Returns:
        Both. Sampling is on if an option only means something then, and off at temperature 0.
    """
    chosen = {**parameters, **{name: value for name, value in given.items() if value is not None}}
    if chosen.get("temperature") == 0:
        del chosen["temperature"]
        return {"do_sample": False, **chosen}
    samples = [given.get(name) is not None for name in ("temperature", "top_p", "top_k", "seed")]
    return {"do_sample": True, **chosen} if any(samples) else chosen
