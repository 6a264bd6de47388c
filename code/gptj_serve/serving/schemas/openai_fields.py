"""Fields of OpenAI's requests, and of servers that speak its schema, that change nothing here, or cannot.

Clients send most of them with every request. What changes nothing may have any value; of the rest, the value
that changes nothing is taken, and any other is refused with the word that it is not supported.
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
"""They are about the account that OpenAI keeps; nothing is stored here."""

_NOT_SERVED = only(None)

NOT_SERVED: Mapping[str, Check] = {
    "response_format": only({"type": "text"}),
    "tools": only([]),
    "tool_choice": only("none", "auto"),
    "parallel_tool_calls": boolean,
    # vLLM's and TGI's
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
"""In completions and in chat."""

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
"""In chat alone, too."""

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
"""What a client's own message object has beside its role and content."""
