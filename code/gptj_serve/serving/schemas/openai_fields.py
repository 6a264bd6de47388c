"""Fields of requests in OpenAI's schema that change nothing here, or are not supported.

Clients send most of them with every request. What changes nothing may have any value. Of the others, the
value that changes nothing is accepted, and any other value is refused as not supported.
"""

from collections.abc import Mapping

from gptj_serve.serving.schemas.field_checks import Check, any_object, boolean, only, string

NO_EFFECT: Mapping[str, Check] = {
    "user": string,
    "metadata": any_object,
    "service_tier": string,
    "store": boolean,
    "prompt_cache_key": string,
    "prompt_cache_retention": string,
    "safety_identifier": string,
}
"""These fields are about an account at OpenAI; nothing is stored here."""

_NOT_SERVED = only(None)

NOT_SERVED: Mapping[str, Check] = {
    "response_format": only({"type": "text"}),
    "tools": only([]),
    "tool_choice": only("none", "auto"),
    "parallel_tool_calls": boolean,
    # these are vLLM's and TGI's
    "use_beam_search": only(False),
    "priority": only(0),
    "return_tokens_as_token_ids": only(False),
    **dict.fromkeys(
        [
            "guided_json",
            "guided_regex",
            "guided_choice",
            "guided_grammar",
            "guided_decoding_backend",
            "guided_whitespace_pattern",
            "structured_outputs",
            "allowed_token_ids",
            "prompt_logprobs",
            "truncate_prompt_tokens",
            "logits_processors",
            "kv_transfer_params",
        ],
        _NOT_SERVED,
    ),
}
"""Fields of completions and of chat that are not supported."""

CHAT_NOT_SERVED: Mapping[str, Check] = {
    **NOT_SERVED,
    "functions": only([]),
    "function_call": only("none", "auto"),
    "modalities": only(["text"]),
    "reasoning_effort": only("none"),
    "verbosity": only("medium"),
    **dict.fromkeys(
        ["audio", "prediction", "web_search_options", "moderation", "chat_template", "mm_processor_kwargs"],
        _NOT_SERVED,
    ),
    "chat_template_kwargs": only({}),
    "documents": only([]),
    "tool_prompt": _NOT_SERVED,
    "guideline": _NOT_SERVED,
    "echo": only(False),
    "best_of": only(1),
    "add_generation_prompt": only(True),
    "continue_final_message": only(False),
    "include_reasoning": boolean,
}
"""Fields of chat that are not supported."""

MESSAGE_NOT_SERVED: Mapping[str, Check] = {
    "refusal": _NOT_SERVED,
    "annotations": only([]),
    "audio": _NOT_SERVED,
    "function_call": _NOT_SERVED,
    "tool_calls": only([]),
    "tool_call_id": _NOT_SERVED,
    "reasoning": only(""),
    "reasoning_content": only(""),
}
"""What message objects of clients' libraries have besides role and content."""
