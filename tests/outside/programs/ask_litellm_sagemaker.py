"""LiteLLM through SageMaker's runtime."""

import litellm
from told import runtime, tell

messages = [{"role": "user", "content": "The king"}]
credentials = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "aws_region_name": "eu-west-1"}
whole_url = {"sagemaker_base_url": f"{runtime}/endpoints/gpt-j/invocations"}
stream_url = {"sagemaker_base_url": f"{runtime}/endpoints/gpt-j/invocations-response-stream", "stream": True}
text = {"model": "sagemaker/gpt-j", "messages": messages, "max_tokens": 12, **credentials}
chat = {"model": "sagemaker_chat/gpt-j", "max_tokens": 8, "temperature": 0, **credentials}
chat["messages"] = [{"role": "user", "content": "Who is the king?"}]


def said(chunks):
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def refused(**changes):
    try:
        said(litellm.completion(**changes))
    except Exception as error:
        return [type(error).__name__, "2048" in str(error)]


tell(
    ("litellm", "boto3"),
    whole=litellm.completion(**text, **whole_url).choices[0].message.content,
    stream=said(litellm.completion(**text, **stream_url)),
    stopped=litellm.completion(**text, **whole_url, stop=["lon"]).choices[0].message.content,
    several=litellm.completion(**text, **whole_url, n=2).choices[0].message.content,
    chat=litellm.completion(**chat, **whole_url).choices[0].message.content,
    chat_stream=said(litellm.completion(**chat, **stream_url)),
    too_long=refused(**text | {"max_tokens": 3000}, **whole_url),
    too_long_stream=refused(**text | {"max_tokens": 3000}, **stream_url),
)
