"""AWS's own client of an endpoint, in every schema that walk-throughs of GPT-J on SageMaker use."""

import json

import boto3
from told import runtime, tell

client = boto3.client("sagemaker-runtime", endpoint_url=runtime)
ask = {"inputs": "The king", "parameters": {"max_new_tokens": 12}}


def invoke(document, kind="application/json"):
    body = document if isinstance(document, str) else json.dumps(document)
    return client.invoke_endpoint(EndpointName="gpt-j", ContentType=kind, Body=body)["Body"].read().decode()


def stream(document):
    answer = client.invoke_endpoint_with_response_stream(
        EndpointName="gpt-j", ContentType="application/json", Body=json.dumps(document)
    )
    lines = b"".join(event["PayloadPart"]["Bytes"] for event in answer["Body"]).decode().splitlines()
    events = [line.removeprefix("data:").strip() for line in lines if line.startswith("data:")]
    return [json.loads(event) for event in events if event != "[DONE]"]


def refused():
    try:
        invoke(ask | {"inputs": "the " * 3000})
    except client.exceptions.ModelError as error:
        return [
            error.response["OriginalStatusCode"],
            json.loads(error.response["OriginalMessage"])["error_type"],
        ]


prompt = {"model": "gpt-j", "prompt": "The king", "max_tokens": 12, "temperature": 0}
talk = {"messages": [{"role": "user", "content": "Who is the king?"}], "max_tokens": 8, "temperature": 0}
tell(
    ("boto3",),
    whole=json.loads(invoke(ask))[0]["generated_text"],
    stream="".join(event["token"]["text"] for event in stream(ask | {"stream": True})),
    openai=json.loads(invoke(prompt))["choices"][0]["text"],
    openai_stream="".join(event["choices"][0]["text"] for event in stream(prompt | {"stream": True})),
    guide=json.loads(invoke({"inputs": {"text_inputs": "The king", "parameters": {"max_new_tokens": 12}}})),
    plain=invoke("The king", "text/plain"),
    stopped=json.loads(invoke({"inputs": "The king", "parameters": {"max_new_tokens": 12, "stop": ["lon"]}})),
    many=[
        len(one)
        for one in json.loads(
            invoke(
                {
                    "inputs": [f"The king of {number}" for number in range(20)],
                    "parameters": {"max_new_tokens": 3, "do_sample": True, "num_return_sequences": 4},
                }
            )
        )
    ],
    chat=json.loads(invoke(talk))["choices"][0]["message"]["content"],
    too_long=refused(),
)
