"""JSON Schemas of what the HTTP front answers, by name. Those of requests come from the fields' checks."""

from collections.abc import Mapping, Sequence
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


def answers() -> dict[str, Schema]:
    """Every schema of an answer, or of an event of a stream."""
    return {**_errors(), **_hugging_face(), **_completions(), **_chat(), **_others()}


def _object(properties: Mapping[str, Schema], optional: Sequence[str] = ()) -> Schema:
    """An object that has these fields and no others."""
    required = [name for name in properties if name not in optional]
    closed = {"additionalProperties": False}
    return {"type": "object", "properties": dict(properties), "required": required, **closed}


def _or_null(schema: Schema) -> Schema:
    return any_of(schema, NULL)


def _errors() -> dict[str, Schema]:
    kind = {"enum": list(KINDS)}
    code = {"enum": [*KINDS, ContextOverflow.code, ModelNotFound.code]}
    detail = {"message": STRING, "type": STRING, "param": NULL, "code": code, "request_id": STRING}
    error = {"error": STRING, "error_type": kind, "request_id": STRING}
    return {
        "Error": _object(error, optional=["request_id"]),
        "OpenAIError": _object({"error": _object(detail)}),
    }


def _hugging_face() -> dict[str, Schema]:
    token = {"id": COUNT, "text": STRING, "logprob": _or_null(LOGPROB), "special": {"type": "boolean"}}
    top_tokens = array(ref("Token"))
    counts = {"generated_tokens": COUNT, "seed": _or_null(COUNT)}
    reasons = ["length", "eos_token", "stop_sequence"]
    details = {
        "finish_reason": {"enum": reasons},
        "prompt_tokens": COUNT,
        **counts,
        "prefill": {"type": "array", "maxItems": 0},
        "tokens": array(ref("Token")),
        "top_tokens": array(top_tokens),
        "best_of_sequences": array(ref("BestOfSequence")),
    }
    other = {**details, "generated_text": STRING}
    del other["prompt_tokens"], other["best_of_sequences"]
    last = {"finish_reason": {"enum": reasons}, "input_length": COUNT, **counts}
    event = {
        "index": {"type": "integer", "minimum": 1},
        "token": ref("Token"),
        "top_tokens": top_tokens,
        "generated_text": _or_null(STRING),
        "details": _or_null(_object(last)),
    }
    entries = array(ref("GeneratedText"))
    return {
        "Token": _object(token),
        "Details": _object(details, optional=["top_tokens", "best_of_sequences"]),
        "BestOfSequence": _object(other, optional=["top_tokens"]),
        "GeneratedText": _object({"generated_text": STRING, "details": ref("Details")}, optional=["details"]),
        "HuggingFaceAnswer": any_of(entries, array(entries)),
        "HuggingFaceEvent": _object(event, optional=["top_tokens"]),
        "GuideAnswer": _object({"response": any_of(entries, array(entries)), "status": {"enum": [200]}}),
    }


def _openai(kind: str, choice: Schema, *, is_chunk: bool = False) -> Schema:
    usage = _or_null(ref("Usage")) if is_chunk else ref("Usage")
    properties = {
        "id": STRING,
        "object": {"enum": [kind]},
        "created": COUNT,
        "model": STRING,
        "choices": array(choice),
        "usage": usage,
    }
    return _object(properties, optional=["usage"] if is_chunk else [])


def _completions() -> dict[str, Schema]:
    logprobs = {
        "tokens": array(STRING),
        "token_logprobs": array(LOGPROB),
        "top_logprobs": _or_null(array({"type": "object", "additionalProperties": LOGPROB})),
        "text_offset": array(COUNT),
    }
    choice = {"index": COUNT, "text": STRING, "logprobs": _or_null(ref("CompletionLogprobs"))}
    ended = {"finish_reason": {"enum": ["stop", "length"]}}
    going = {"finish_reason": {"enum": ["stop", "length", "deadline", None]}}
    counts = {"prompt_tokens": COUNT, "completion_tokens": COUNT, "total_tokens": COUNT}
    return {
        "Usage": _object(counts),
        "CompletionLogprobs": _object(logprobs),
        "Completion": _openai("text_completion", _object({**choice, **ended})),
        "CompletionChunk": _openai("text_completion", _object({**choice, **going}), is_chunk=True),
    }


def _chat() -> dict[str, Schema]:
    entry = {"token": STRING, "logprob": LOGPROB, "bytes": _or_null(array(COUNT))}
    token = _object({**entry, "top_logprobs": array(_object(entry))})
    logprobs = _or_null(_object({"content": array(token), "refusal": NULL}))
    role = {"enum": ["assistant"]}
    message = _object({"role": role, "content": STRING})
    delta = _object({"role": role, "content": STRING}, optional=["role", "content"])
    head = {"index": COUNT, "logprobs": logprobs}
    ended = {"finish_reason": {"enum": ["stop", "length"]}}
    going = {"finish_reason": {"enum": ["stop", "length", "deadline", None]}}
    return {
        "ChatCompletion": _openai("chat.completion", _object({**head, "message": message, **ended})),
        "ChatCompletionChunk": _openai(
            "chat.completion.chunk", _object({**head, "delta": delta, **going}), is_chunk=True
        ),
    }


def _info() -> Schema:
    counts = (
        "max_concurrent_requests",
        "max_best_of",
        "max_stop_sequences",
        "max_input_tokens",
        "max_total_tokens",
        "validation_workers",
        "max_client_batch_size",
    )
    texts = ("model_id", "model_name", "engine", "model_pipeline_tag", "router", "version")
    return _object(
        {
            **dict.fromkeys(texts, STRING),
            **dict.fromkeys(counts, COUNT),
            **dict.fromkeys(("model_sha", "sha", "docker_label"), NULL),
            "auto_truncate": {"enum": [False]},
        }
    )


def _others() -> dict[str, Schema]:
    model = {"id": STRING, "object": {"enum": ["model"]}, "created": COUNT, "owned_by": STRING}
    return {
        "Model": _object(model),
        "Models": _object({"object": {"enum": ["list"]}, "data": array(ref("Model"))}),
        "Info": _info(),
        "Health": _object({"status": {"enum": ["ok"]}}),
    }
