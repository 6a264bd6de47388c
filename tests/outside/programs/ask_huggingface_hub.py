"""Hugging Face's client of inference endpoints."""

from huggingface_hub import InferenceClient
from huggingface_hub.errors import ValidationError
from told import base, tell

client = InferenceClient(base)
ask = {"prompt": "The king", "max_new_tokens": 12}


def refused(**changes):
    try:
        client.text_generation(**ask | changes)
    except ValidationError as error:
        return "2048" in str(error)


detailed = client.text_generation(**ask, details=True, stop=["lon"])
*_, last = client.text_generation(**ask, details=True, stream=True)
talk = {"messages": [{"role": "user", "content": "Who is the king?"}], "max_tokens": 8, "temperature": 0}
tell(
    ("huggingface-hub",),
    whole=client.text_generation(**ask),
    stream="".join(client.text_generation(**ask, stream=True)),
    last=[last.generated_text, last.details.finish_reason, last.details.generated_tokens],
    stopped=[detailed.generated_text, detailed.details.finish_reason],
    warm=[client.text_generation(**ask, temperature=2.0) for _ in range(4)],
    chat=client.chat_completion(**talk).choices[0].message.content,
    chat_stream="".join(
        part.choices[0].delta.content or "" for part in client.chat_completion(**talk, stream=True)
    ),
    too_long=refused(prompt="the " * 3000),
    too_long_stream=refused(prompt="the " * 3000, stream=True),
)
