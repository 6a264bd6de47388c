"""OpenAI's own client, in both of its forms."""

import asyncio

from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI
from told import base, tell

client = OpenAI(base_url=f"{base}/v1", api_key="none")
ask = {"model": "gpt-j", "prompt": "The king", "max_tokens": 12, "temperature": 0}
talk = {"model": "gpt-j", "messages": [{"role": "user", "content": "Who is the king?"}]}
talk |= {"max_tokens": 8, "temperature": 0}

chunks = list(client.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
parts = client.chat.completions.create(**talk, stream=True)
prompts = [f"The king of {number}" for number in range(20)]
many = client.completions.create(model="gpt-j", prompt=prompts, n=4, max_tokens=3)


def refused(call, **changes):
    """What a request that cannot be served is for this client."""
    try:
        call(**changes)
    except (BadRequestError, NotFoundError) as error:
        return [type(error).__name__, error.status_code, error.code]


async def at_once():
    async with AsyncOpenAI(base_url=f"{base}/v1", api_key="none") as many_at_once:
        answers = await asyncio.gather(*(many_at_once.completions.create(**ask) for _ in range(6)))
    return [one.choices[0].text for one in answers]


tell(
    ("openai",),
    whole=client.completions.create(**ask).choices[0].text,
    stream="".join(chunk.choices[0].text for chunk in chunks if chunk.choices),
    stream_usage=chunks[-1].usage.completion_tokens,
    at_once=asyncio.run(at_once()),
    stopped=client.completions.create(**ask, stop=["lon"])
    .choices[0]
    .model_dump(include={"text", "finish_reason"}),
    many=[choice.index for choice in many.choices],
    many_usage=many.usage.completion_tokens,
    chat=client.chat.completions.create(**talk).choices[0].message.content,
    chat_stream="".join(part.choices[0].delta.content or "" for part in parts),
    models=[model.id for model in client.models.list()],
    too_long=refused(client.completions.create, **ask | {"prompt": "the " * 3000}),
    too_long_chat=refused(client.chat.completions.create, **talk | {"max_tokens": 3000}),
    tools=refused(
        client.chat.completions.create,
        **talk,
        tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}],
    ),
    embeddings=refused(client.embeddings.create, model="gpt-j", input="a"),
)
