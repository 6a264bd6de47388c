"""LangChain's client of TGI."""

from huggingface_hub.errors import ValidationError
from langchain_huggingface import HuggingFaceEndpoint
from told import base, tell

model = HuggingFaceEndpoint(endpoint_url=base, max_new_tokens=12, temperature=1e-10)


def refused():
    try:
        model.invoke("the " * 3000)
    except ValidationError as error:
        return "2048" in str(error)


tell(
    ("langchain-huggingface", "huggingface-hub"),
    whole=model.invoke("The king"),
    stream="".join(model.stream("The king")),
    many=model.batch(["The king"] * 20, config={"max_concurrency": 4}),
    stopped=model.invoke("The king", stop=["lon"]),
    too_long=refused(),
)
