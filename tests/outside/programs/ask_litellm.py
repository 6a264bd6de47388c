"""LiteLLM through OpenAI's API."""

import litellm
from told import base, tell

given = {"api_base": f"{base}/v1", "api_key": "none", "max_tokens": 12, "temperature": 0}
talk = {"messages": [{"role": "user", "content": "Who is the king?"}]}
text = {"model": "text-completion-openai/gpt-j", "prompt": "The king", **given}
chat = {"model": "openai/gpt-j", **given, **talk, "max_tokens": 8}


def refused(call, **changes):
    try:
        call(**changes)
    except litellm.ContextWindowExceededError as error:
        return error.status_code


def said(chunks):
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


prompts = [f"The king of {number}" for number in range(20)]
many = litellm.text_completion(**text | {"prompt": prompts, "temperature": 1, "max_tokens": 3}, n=4)
tell(
    ("litellm", "openai"),
    whole=litellm.text_completion(**text).choices[0].text,
    stream="".join(chunk.choices[0].text or "" for chunk in litellm.text_completion(**text, stream=True)),
    same_as_openai=litellm.text_completion(**text | {"model": "openai/gpt-j"}).choices[0].text,
    stopped=litellm.text_completion(**text, stop=["lon"]).choices[0].text,
    many=len(many.choices),
    chat=litellm.completion(**chat).choices[0].message.content,
    chat_stream=said(litellm.completion(**chat, stream=True)),
    too_long=refused(litellm.text_completion, **text | {"prompt": "the " * 3000}),
    too_long_chat=refused(litellm.completion, **chat | {"max_tokens": 3000}),
)
