"""LangChain's client of SageMaker endpoints, with the content handler of its documentation."""

import json

import boto3
from langchain_aws.llms import SagemakerEndpoint
from langchain_aws.llms.sagemaker_endpoint import LLMContentHandler
from told import runtime, tell


class ContentHandler(LLMContentHandler):
    content_type = "application/json"
    accepts = "application/json"

    def transform_input(self, prompt, model_kwargs):
        return json.dumps({"inputs": prompt, "parameters": model_kwargs}).encode("utf-8")

    def transform_output(self, output):
        return json.loads(output.read().decode("utf-8"))[0]["generated_text"]


class StreamHandler(ContentHandler):
    """The same for streams, of which it gets line after line."""

    def transform_input(self, prompt, model_kwargs):
        return json.dumps({"inputs": prompt, "parameters": model_kwargs, "stream": True}).encode("utf-8")

    def transform_output(self, output):
        line = output.decode("utf-8")
        return json.loads(line.removeprefix("data:"))["token"]["text"] if line.startswith("data:") else ""


given = {
    "endpoint_name": "gpt-j",
    "client": boto3.client("sagemaker-runtime", endpoint_url=runtime),
    "model_kwargs": {"max_new_tokens": 12, "temperature": 1e-10},
    "content_handler": ContentHandler(),
}
model = SagemakerEndpoint(**given)
streaming = SagemakerEndpoint(**given | {"content_handler": StreamHandler()}, streaming=True)


def refused():
    try:
        model.invoke("the " * 3000)
    except model.client.exceptions.ModelError as error:
        return error.response["OriginalStatusCode"]


tell(
    ("langchain-aws",),
    whole=model.invoke("The king"),
    stream="".join(streaming.stream("The king")),
    many=model.batch(["The king"] * 20, config={"max_concurrency": 4}),
    too_long=refused(),
)
