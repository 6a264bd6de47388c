"""What a schema is: how answers and errors look to the clients that speak it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from gptj_serve.errors import BadRequest, ServingError
from gptj_serve.serving.call import Call
from gptj_serve.serving.generation import Answer
from gptj_serve.serving.schemas.streaming import StreamRenderer


class Schema(ABC):
    """One schema. Bodies are read by functions of its module: their shape, or the path, says which it is.

    Attributes:
        name: What `Ask.schema`, logs and metrics call it.
    """

    name: ClassVar[str]

    @abstractmethod
    def render(
        self, call: Call, answers: Sequence[Answer], request_id: str, num_generated: int | None
    ) -> Any:
        """The whole answer: what becomes JSON, or text.

        Args:
            call: What was asked.
            answers: Those that the client gets, all of the first prompt first.
            request_id: The call's.
            num_generated: Tokens of all candidates; None if there were none but the answers.
        """

    def stream(self, call: Call, request_id: str) -> StreamRenderer:
        """What renders the answer piece by piece.

        Raises:
            BadRequest: The schema has no streams.
        """
        raise BadRequest(f"stream=true: the {self.name} schema has no streams; must be false")

    def error(self, error: ServingError, request_id: str) -> dict[str, Any]:
        """An error's body."""
        return error.to_body(request_id)
