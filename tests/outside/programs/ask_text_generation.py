"""TGI's own client, in both of its forms."""

import asyncio

from text_generation import AsyncClient, Client
from text_generation.errors import ValidationError
from told import base, tell

client = Client(base, timeout=60)


def refused(call):
    try:
        list(call("the " * 3000))
    except ValidationError as error:
        return "2048" in str(error)


async def at_once():
    ask = {"prompt": "The king", "max_new_tokens": 12}
    answers = await asyncio.gather(*(AsyncClient(base, timeout=60).generate(**ask) for _ in range(6)))
    return [one.generated_text for one in answers]


whole = client.generate("The king", max_new_tokens=12)
best = client.generate("The king", max_new_tokens=4, best_of=2, temperature=0.9)
stopped = client.generate("The king", max_new_tokens=12, stop_sequences=["lon"])
*_, last = client.generate_stream("In the beginning", max_new_tokens=6, top_n_tokens=2)
tell(
    ("text-generation",),
    whole=whole.generated_text,
    reason=whole.details.finish_reason.value,
    stream="".join(event.token.text for event in client.generate_stream("The king", max_new_tokens=12)),
    last=[last.details.generated_tokens, len(last.top_tokens)],
    at_once=asyncio.run(at_once()),
    stopped=[stopped.generated_text, stopped.details.finish_reason.value],
    others=len(best.details.best_of_sequences),
    warm=[client.generate("The king", max_new_tokens=12, temperature=2.0).generated_text for _ in range(4)],
    too_long=refused(client.generate),
    too_long_stream=refused(client.generate_stream),
)
