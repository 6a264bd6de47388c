"""LlamaIndex's client of servers that speak OpenAI's API."""

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from openai import BadRequestError
from told import base, tell

given = {
    "model": "gpt-j",
    "api_base": f"{base}/v1",
    "api_key": "none",
    "context_window": 2048,
    "temperature": 0,
}
model = OpenAILike(**given, is_chat_model=False, max_tokens=12)
chat = OpenAILike(**given, is_chat_model=True, max_tokens=8)
talk = [ChatMessage(role="user", content="Who is the king?")]


def refused(call, *given):
    try:
        call(*given)
    except BadRequestError as error:
        return error.code


tell(
    ("llama-index-llms-openai-like", "openai"),
    whole=model.complete("The king").text,
    stream="".join(part.delta for part in model.stream_complete("The king")),
    stopped=model.complete("The king", stop=["lon"]).text,
    chat=chat.chat(talk).message.content,
    chat_stream="".join(part.delta or "" for part in chat.stream_chat(talk)),
    too_long=refused(chat.chat, [ChatMessage(role="user", content="the " * 3000)]),
)
