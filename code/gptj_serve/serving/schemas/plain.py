"""Plain text in, plain text (or JSON) out, with every parameter at its default."""

from collections.abc import Sequence
from typing import Any

from gptj_serve.serving.body import prefers_plain
from gptj_serve.serving.call import Ask, Call
from gptj_serve.serving.generation import Answer
from gptj_serve.serving.parameters import Parameters
from gptj_serve.serving.schemas import tgi
from gptj_serve.serving.schemas.schema import Schema


def read(text: str) -> Ask:
    """The whole body is the prompt."""
    return Ask(
        schema=Plain.name,
        texts=(text,),
        is_list=False,
        prompts_field="body",
        parameters_field="body",
        parameters=Parameters(),
    )


class Plain(Schema):
    """Plain text."""

    name = "plain"

    def render(
        self, call: Call, answers: Sequence[Answer], request_id: str, num_generated: int | None
    ) -> Any:
        """Only the continuation, as text, or as the `tgi` schema's list where JSON is preferred."""
        if prefers_plain(call.accept):
            return answers[0].text
        return tgi.Tgi().render(call, answers, request_id, num_generated)
