"""The first GPT-J guide's schema: ``{"inputs": {"text_inputs": ..., "parameters": {...}}}``.

Its clients send what Transformers 4.15's text-generation pipeline accepted, so more is accepted here than
elsewhere; nothing that would change the answer is dropped silently.
"""

from collections.abc import Sequence
from typing import Any

from gptj_serve.serving.call import Ask, Call
from gptj_serve.serving.generation import Answer
from gptj_serve.serving.schemas import tgi
from gptj_serve.serving.schemas.common_fields import COMMON, join_stops, to_parameters
from gptj_serve.serving.schemas.field_checks import (
    MAX_TOKENS,
    Check,
    checked_elsewhere,
    integer,
    object_schema,
    only,
    probability,
    read_fields,
)
from gptj_serve.serving.schemas.schema import Schema


def read(document: dict[str, Any]) -> Ask:
    """Read a body whose ``inputs`` is an object.

    Raises:
        BadRequest: A field is missing, unknown or wrong.
    """
    into_inputs = dict.fromkeys(_INPUTS, "belongs into inputs")
    body = read_fields(document, _TOP, "body", {**_ELSEWHERE, **into_inputs})
    inputs = read_fields(body["inputs"], _INPUTS, "inputs", _ELSEWHERE)
    where = "inputs.parameters"
    beside = dict.fromkeys(_INPUTS, f"belongs beside {where}, not into it")
    fields = join_stops(read_fields(inputs.get("parameters"), _CHECKS, where, beside), where)
    fields["min_new_tokens"] = max(fields.get("min_tokens", 0), fields.get("min_new_tokens", 0))
    texts, is_list = tgi.read_prompts(inputs.get("text_inputs"), "inputs.text_inputs")
    return Ask(
        schema=Guide.name,
        texts=texts,
        is_list=is_list,
        prompts_field="inputs.text_inputs",
        parameters_field=where,
        parameters=to_parameters({"return_full_text": True, **fields}),
    )


class Guide(Schema):
    """The first guide's schema."""

    name = "guide"

    def render(
        self, call: Call, answers: Sequence[Answer], request_id: str, num_generated: int | None
    ) -> dict[str, Any]:
        """The pipeline's result: entries for one prompt, a list of lists for a list of prompts."""
        groups = tgi.grouped(call, answers)
        return {"response": groups if call.ask.is_list else groups[0], "status": 200}


def _whole(check: Check) -> Check:
    """The same check that reads 20.0 as 20, which clients that compute their lengths send."""

    def check_whole(value: Any) -> Any:
        return check.read(int(value) if isinstance(value, float) and value.is_integer() else value)

    return Check(check_whole, check.schema)


def _top_p(value: Any) -> float:
    if type(value) in (int, float) and value > 1:
        return 1.0  # the old pipeline only filtered below 1
    return float(probability.read(value))


_INTEGER_FIELDS = (
    "max_new_tokens",
    "min_new_tokens",
    "top_k",
    "seed",
    "num_return_sequences",
    "truncate",
    "num_beams",
    "min_length",
    "max_length",
    "no_repeat_ngram_size",
)

_CHECKS: dict[str, Check] = {
    **COMMON,
    **{name: _whole(COMMON[name]) for name in _INTEGER_FIELDS},
    "top_p": Check(_top_p, {"type": "number", "exclusiveMinimum": 0}),
    "min_tokens": _whole(integer(0, MAX_TOKENS)),
}
_TOP = {"inputs": checked_elsewhere({"type": "object"}), "stream": only(False)}
_INPUTS = {"text_inputs": tgi.PROMPTS, "parameters": checked_elsewhere(object_schema(_CHECKS))}
_ELSEWHERE = dict.fromkeys(_CHECKS, "belongs into inputs.parameters")

REQUEST = object_schema(
    {**_TOP, "inputs": checked_elsewhere(object_schema(_INPUTS, required=["text_inputs"]))},
    required=["inputs"],
)
"""The JSON Schema of the bodies that `read` reads."""
