"""JSON Schemas by name of what the HTTP front answers; those of requests come from the fields' checks."""

from collections.abc import Collection, Mapping
from typing import Any

from gptj_serve.errors import KINDS, ContextOverflow, ModelNotFound

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NULL: Schema = {"type": "null"}
LOGPROB: Schema = {"type": "number"}


def ref(name: str) -> Schema:
    """A reference to one of the document's schemas."""
    return {"$ref": f"#/components/schemas/{name}"}


def any_of(*schemas: Schema) -> Schema:
    """One of several schemas."""
    return {"anyOf": list(schemas)}


def array(items: Schema) -> Schema:
    """A list."""
    return {"type": "array", "items": items}


def _object(properties: Mapping[str, Schema], optional: Collection[str] = ()) -> Schema:
    """An object with these fields and no others."""
    required = [name for name in properties if name not in optional]
    closed = {"additionalProperties": False}
    return {"type": "object", "properties": dict(properties), "required": required, **closed}


def _or_null(schema: Schema) -> Schema:
    return any_of(schema, NULL)


_COUNTS = {"generated_tokens": COUNT, "seed": _or_null(COUNT)}
_TGI_REASON: Schema = {"enum": ["length", "eos_token", "stop_sequence"]}
_TOLD = {
    "finish_reason": _TGI_REASON,
    **_COUNTS,
    "prefill": {"type": "array", "maxItems": 0},
    "tokens": array(ref("Token")),
    "top_tokens": array(array(ref("Token"))),
}
_LAST = {"finish_reason": _TGI_REASON, "input_length": COUNT, **_COUNTS}
_ENTRIES = array(ref("GeneratedText"))

_TGI: dict[str, Schema] = {
    "Error": _object(
        {"error": STRING, "error_type": {"enum": list(KINDS)}, "request_id": STRING}, ["request_id"]
    ),
    "Token": _object(
        {"id": COUNT, "text": STRING, "logprob": _or_null(LOGPROB), "special": {"type": "boolean"}}
    ),
    "Details": _object(
        {**_TOLD, "prompt_tokens": COUNT, "best_of_sequences": array(ref("BestOfSequence"))},
        optional=["top_tokens", "best_of_sequences"],
    ),
    "BestOfSequence": _object({**_TOLD, "generated_text": STRING}, optional=["top_tokens"]),
    "GeneratedText": _object({"generated_text": STRING, "details": ref("Details")}, optional=["details"]),
    "HuggingFaceAnswer": any_of(_ENTRIES, array(_ENTRIES)),
    "HuggingFaceEvent": _object(
        {
            "index": {"type": "integer", "minimum": 1},
            "token": ref("Token"),
            "top_tokens": array(ref("Token")),
            "generated_text": _or_null(STRING),
            "details": _or_null(_object(_LAST)),
        },
        optional=["top_tokens"],
    ),
    "GuideAnswer": _object({"response": any_of(_ENTRIES, array(_ENTRIES)), "status": {"enum": [200]}}),
    "Info": _object(
        {
            **dict.fromkeys(
                ("model_id", "model_name", "engine", "model_pipeline_tag", "router", "version"), STRING
            ),
            "max_concurrent_requests": COUNT,
            "max_best_of": COUNT,
            "max_stop_sequences": COUNT,
            "max_input_tokens": COUNT,
            "max_total_tokens": COUNT,
            "validation_workers": COUNT,
            "max_client_batch_size": COUNT,
            **dict.fromkeys(("model_sha", "sha", "docker_label"), NULL),
            "auto_truncate": {"enum": [False]},
        }
    ),
}
"""TGI's schemas, and those of others that share its errors."""


def _openai(kind: str, choice: Mapping[str, Schema], *, is_chunk: bool = False) -> Schema:
    """An answer of OpenAI's API, or a chunk of one.

    Args:
        kind: The value of its ``object``.
        choice: What its choices have beside their index and finish reason.
        is_chunk: Whether it is a chunk.
    """
    reasons = ["stop", "length", "deadline", None] if is_chunk else ["stop", "length"]
    usage = _or_null(ref("Usage")) if is_chunk else ref("Usage")
    properties = {
        "id": STRING,
        "object": {"enum": [kind]},
        "created": COUNT,
        "model": STRING,
        "choices": array(_object({"index": COUNT, **choice, "finish_reason": {"enum": reasons}})),
        "usage": usage,
    }
    return _object(properties, optional=["usage"] if is_chunk else [])


_TEXT = {"text": STRING, "logprobs": _or_null(ref("CompletionLogprobs"))}
_LIKELY = {"token": STRING, "logprob": LOGPROB, "bytes": _or_null(array(COUNT))}
_CHAT_LOGPROBS = {
    "content": array(_object({**_LIKELY, "top_logprobs": array(_object(_LIKELY))})),
    "refusal": NULL,
}
_MESSAGE = {"role": {"enum": ["assistant"]}, "content": STRING}
_CHAT = {"logprobs": _or_null(_object(_CHAT_LOGPROBS))}

_OPENAI: dict[str, Schema] = {
    "OpenAIError": _object(
        {
            "error": _object(
                {
                    "message": STRING,
                    "type": STRING,
                    "param": NULL,
                    "code": {"enum": [*KINDS, ContextOverflow.code, ModelNotFound.code]},
                    "request_id": STRING,
                }
            )
        }
    ),
    "Usage": _object({"prompt_tokens": COUNT, "completion_tokens": COUNT, "total_tokens": COUNT}),
    "CompletionLogprobs": _object(
        {
            "tokens": array(STRING),
            "token_logprobs": array(LOGPROB),
            "top_logprobs": _or_null(array({"type": "object", "additionalProperties": LOGPROB})),
            "text_offset": array(COUNT),
        }
    ),
    "Completion": _openai("text_completion", _TEXT),
    "CompletionChunk": _openai("text_completion", _TEXT, is_chunk=True),
    "ChatCompletion": _openai("chat.completion", {**_CHAT, "message": _object(_MESSAGE)}),
    "ChatCompletionChunk": _openai(
        "chat.completion.chunk",
        {**_CHAT, "delta": _object(_MESSAGE, optional=_MESSAGE.keys())},
        is_chunk=True,
    ),
    "Model": _object({"id": STRING, "object": {"enum": ["model"]}, "created": COUNT, "owned_by": STRING}),
    "Models": _object({"object": {"enum": ["list"]}, "data": array(ref("Model"))}),
}

ANSWERS = {**_TGI, **_OPENAI, "Health": _object({"status": {"enum": ["ok"]}})}
"""All schemas of answers, and of the events of streams."""
