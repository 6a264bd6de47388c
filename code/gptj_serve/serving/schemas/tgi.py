"""Hugging Face's schema: ``{"inputs": ..., "parameters": {...}}``, as TGI and the pipelines have it."""

from collections.abc import Sequence
from typing import Any

from gptj_serve.errors import BadRequest
from gptj_serve.serving.call import Ask, Call, Prompt
from gptj_serve.serving.generation import Answer
from gptj_serve.serving.parameters import (
    COMMON,
    Parameters,
    anything,
    boolean,
    join_stops,
    number,
    only,
    read_fields,
    shown,
)

NAME = "tgi"

_CHECKS = {
    **COMMON,
    # TGI's clients send these even where they change nothing
    "best_of": only(1),
    "decoder_input_details": only(False),
    "frequency_penalty": number(0, 0),
    "grammar": only(None),
    "adapter_id": only(None),
    "top_n_tokens": only(0),
    "watermark": only(False),
}


def read(document: dict[str, Any]) -> Ask:
    """Read a body.

    Raises:
        BadRequest: A field is missing, unknown or wrong.
    """
    fields = read_fields(document, {"inputs": anything, "parameters": anything, "stream": boolean}, "body")
    texts, is_list = read_prompts(fields.get("inputs"), "inputs")
    parameters = join_stops(read_fields(fields.get("parameters"), _CHECKS, "parameters"), "parameters")
    return Ask(
        schema=NAME,
        texts=texts,
        is_list=is_list,
        prompts_field="inputs",
        parameters_field="parameters",
        parameters=to_parameters(parameters),
        stream=fields.get("stream", False),
    )


def read_prompts(value: Any, where: str) -> tuple[tuple[str, ...], bool]:
    """One prompt or a list of them, and whether it was a list."""
    if isinstance(value, str):
        return (value,), False
    if not isinstance(value, list):
        raise BadRequest(f"{where}={shown(value)}: must be a string or a list of strings")
    if not value:
        raise BadRequest(f"{where}: must not be an empty list")
    for index, text in enumerate(value):
        if not isinstance(text, str):
            raise BadRequest(f"{where}[{index}]={shown(text)}: must be a string")
    return tuple(value), True


def to_parameters(fields: dict[str, Any]) -> Parameters:
    """Drop the fields that were only checked."""
    known = Parameters.__dataclass_fields__.keys() - {"best_of"}
    return Parameters(**{name: fields[name] for name in fields if name in known})


def render(call: Call, answers: Sequence[Answer]) -> list[Any]:
    """A list with one entry an answer; with several answers for each of a list's prompts, a list of lists."""
    groups = grouped(call, answers)
    if call.ask.is_list and call.parameters.num_return_sequences > 1:
        return groups
    return [entry for group in groups for entry in group]


def grouped(call: Call, answers: Sequence[Answer]) -> list[list[dict[str, Any]]]:
    """The answers' entries, one list a prompt."""
    num_answers = call.parameters.num_return_sequences
    return [
        [_entry(call, prompt, answer) for answer in answers[index * num_answers : (index + 1) * num_answers]]
        for index, prompt in enumerate(call.prompts)
    ]


def _entry(call: Call, prompt: Prompt, answer: Answer) -> dict[str, Any]:
    start = prompt.text if call.parameters.return_full_text else ""
    entry: dict[str, Any] = {"generated_text": start + answer.text}
    if call.parameters.details:
        entry["details"] = _details(prompt, answer)
    return entry


def _details(prompt: Prompt, answer: Answer) -> dict[str, Any]:
    return {
        "finish_reason": answer.finish_reason,
        "prompt_tokens": len(prompt.token_ids),
        "generated_tokens": answer.num_tokens,
        "seed": prompt.seed,
        "prefill": [],
        "tokens": [
            {"id": token.token_id, "text": token.text, "logprob": token.logprob, "special": token.special}
            for token in answer.tokens
        ],
    }
