"""Deploys an image with AWS's own SDK on the local Docker engine, asks it, and deletes it.

Usage: python local_mode.py IMAGE MODEL_DIR PORT ANSWER_FILE

Needs the package sagemaker 2.x and docker-compose (or Docker's compose plugin), no AWS account.

The answer to a request is written as JSON to a file: on stdout it would be among the container's log.
"""

import json
import sys
from pathlib import Path

import boto3
from sagemaker.deserializers import JSONDeserializer
from sagemaker.local import LocalSession
from sagemaker.model import Model
from sagemaker.predictor import Predictor
from sagemaker.serializers import JSONSerializer

NO_TELEMETRY = {"SchemaVersion": "1.0", "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}}}
REQUEST = {"inputs": "In the beginning", "parameters": {"max_new_tokens": 8}}


def main(image: str, model_dir: str, port: int, answer_file: str) -> None:
    """Deploy on a port of this machine, ask, delete."""
    # the SDK wants credentials, but local mode with a file:// model sends nothing to AWS
    boto_session = boto3.Session("none", "none", region_name="us-east-1")
    session = LocalSession(boto_session, sagemaker_config=NO_TELEMETRY)
    session.config = {"local": {"local_code": True, "serving_port": port}}
    model = Model(
        image_uri=image,
        model_data=Path(model_dir).as_uri(),
        role="arn:aws:iam::000000000000:role/none",
        sagemaker_session=session,
        predictor_cls=Predictor,
    )
    predictor = model.deploy(
        initial_instance_count=1,
        instance_type="local",
        serializer=JSONSerializer(),
        deserializer=JSONDeserializer(),
    )
    try:
        Path(answer_file).write_text(json.dumps(predictor.predict(REQUEST)))
    finally:
        predictor.delete_endpoint()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
