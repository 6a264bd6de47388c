"""The first GPT-J guide's schema: ``{"inputs": {"text_inputs": ..., "parameters": {...}}}``.

Its clients send what Transformers 4.15's text-generation pipeline let pass, so more is let pass here
than elsewhere; nothing that would change the answer is dropped in silence.
"""

from collections.abc import Sequence
from typing import Any

from gptj_serve.serving.call import Ask, Call
from gptj_serve.serving.generation import Answer
from gptj_serve.serving.parameters import (
    COMMON,
    MAX_TOKENS,
    NEW_TOKENS,
    Check,
    boolean,
    checked_elsewhere,
    integer,
    join_stops,
    number,
    object_schema,
    only,
    probability,
    read_fields,
)
from gptj_serve.serving.schemas import tgi

NAME = "guide"


def request_schema() -> dict[str, Any]:
    """The JSON Schema of the bodies that `read` reads."""
    inputs = object_schema(_INPUTS, required=["text_inputs"])
    return object_schema({**_TOP, "inputs": checked_elsewhere(inputs)}, required=["inputs"])


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
    texts, is_list = tgi.read_prompts(inputs.get("text_inputs"), "inputs.text_inputs")
    return Ask(
        schema=NAME,
        texts=texts,
        is_list=is_list,
        prompts_field="inputs.text_inputs",
        parameters_field=where,
        parameters=tgi.to_parameters(_translate(fields)),
    )


def render(call: Call, answers: Sequence[Answer]) -> dict[str, Any]:
    """The pipeline's result: entries for one prompt, a list of lists for a list of prompts."""
    groups = tgi.grouped(call, answers)
    return {"response": groups if call.ask.is_list else groups[0], "status": 200}


def _translate(fields: dict[str, Any]) -> dict[str, Any]:
    min_new_tokens = max(fields.get("min_tokens", 0), fields.get("min_new_tokens", 0))
    return {"return_full_text": True, **fields, "min_new_tokens": min_new_tokens}


def _whole(check: Check) -> Check:
    """20.0 counts as 20: clients that compute their lengths send it."""

    def check_whole(value: Any) -> Any:
        return check(int(value) if isinstance(value, float) and value.is_integer() else value)

    return Check(check_whole, check.schema)


def _top_p(value: Any) -> float:
    if type(value) in (int, float) and value > 1:
        return 1.0  # the old pipeline filtered below 1 only
    return float(probability(value))


_LENGTH = _whole(integer(0, MAX_TOKENS))
_FINITE = number(-1e9, 1e9)
_INTEGER_FIELDS = (
    "max_new_tokens",
    "min_new_tokens",
    "top_k",
    "seed",
    "num_return_sequences",
    "truncate",
    "num_beams",
)

_CHECKS: dict[str, Check] = {
    **COMMON,
    **{name: _whole(COMMON[name]) for name in _INTEGER_FIELDS},
    "top_p": Check(_top_p, {"type": "number", "exclusiveMinimum": 0}),
    "min_tokens": _LENGTH,
    "min_length": _LENGTH,
    "max_length": _whole(NEW_TOKENS),
    # no effect without beams or padding, in the old pipeline as here
    "early_stopping": boolean,
    "length_penalty": _FINITE,
    "num_beam_groups": only(1),
    "diversity_penalty": number(0, 0),
    "pad_token_id": integer(0, MAX_TOKENS),
    "use_cache": boolean,
    "synced_gpus": boolean,
    "remove_invalid_values": boolean,
    # accepted at the value that asks for nothing
    "no_repeat_ngram_size": only(0),
    "encoder_no_repeat_ngram_size": only(0),
    "clean_up_tokenization_spaces": only(False),
    "output_attentions": only(False),
    "output_hidden_states": only(False),
    "output_scores": only(False),
    "return_dict_in_generate": only(False),
    "return_tensors": only(False),
    "return_text": only(True),
    "prefix": only(""),
}
_TOP = {"inputs": checked_elsewhere({"type": "object"}), "stream": only(False)}
_INPUTS = {"text_inputs": tgi.PROMPTS, "parameters": checked_elsewhere(object_schema(_CHECKS))}
_ELSEWHERE = dict.fromkeys(_CHECKS, "belongs into inputs.parameters")
