"""LangChain's clients of OpenAI's API."""

from langchain_openai import ChatOpenAI, OpenAI
from openai import BadRequestError
from told import base, tell

given = {"base_url": f"{base}/v1", "api_key": "none", "model": "gpt-j", "temperature": 0}
model = OpenAI(**given, max_tokens=12)
several = OpenAI(**given | {"temperature": 1}, max_tokens=3, n=4)
chat = ChatOpenAI(**given, max_tokens=8)


def refused(call, *given):
    try:
        call(*given)
    except BadRequestError as error:
        return error.code


many = several.generate([f"The king of {number}" for number in range(20)])
tell(
    ("langchain-openai",),
    whole=model.invoke("The king"),
    stream="".join(model.stream("The king")),
    many=[len(one) for one in many.generations],
    stopped=model.invoke("The king", stop=["lon"]),
    chat=chat.invoke("Who is the king?").content,
    chat_stream="".join(chunk.content for chunk in chat.stream("Who is the king?")),
    too_long=refused(model.invoke, "the " * 3000),
    too_long_chat=refused(chat.invoke, "the " * 3000),
)
