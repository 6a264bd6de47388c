"""What the commands ask AWS for, held against what their policies allow."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from botocore.client import BaseClient

from gptj_serve.aws.grants import COMMANDS

Call = tuple[str, str]
"""Service and operation, as botocore names them."""

NAMED_OTHERWISE = {
    ("s3", "HeadBucket"): "s3:ListBucket",
    ("s3", "ListObjectsV2"): "s3:ListBucket",
    ("s3", "HeadObject"): "s3:GetObject",
    ("s3", "CreateMultipartUpload"): "s3:PutObject",
    ("s3", "UploadPart"): "s3:PutObject",
    ("s3", "CompleteMultipartUpload"): "s3:PutObject",
    ("s3", "ListMultipartUploads"): "s3:ListBucketMultipartUploads",
    ("s3", "DeleteObjects"): "s3:DeleteObject",
    ("s3", "GetPublicAccessBlock"): "s3:GetBucketPublicAccessBlock",
    ("s3", "PutPublicAccessBlock"): "s3:PutBucketPublicAccessBlock",
}
NAMED_OTHERWISE |= {
    ("sagemaker-runtime", operation): f"sagemaker:{operation}"
    for operation in ("InvokeEndpoint", "InvokeEndpointAsync", "InvokeEndpointWithResponseStream")
}
NEEDS_NOTHING = {("sts", "GetCallerIdentity")}


@contextmanager
def recorded() -> Iterator[list[Call]]:
    """The calls of AWS that are made inside."""
    calls: list[Call] = []
    original = BaseClient._make_api_call

    def record(self: Any, operation: str, request: Mapping[str, Any]) -> Any:
        calls.append((self.meta.service_model.service_name, operation))
        return original(self, operation, request)

    with patch.object(BaseClient, "_make_api_call", record):
        yield calls


def needed(calls: Iterable[Call]) -> set[str]:
    """The permissions for some calls."""
    return {NAMED_OTHERWISE.get(one, f"{one[0]}:{one[1]}") for one in calls if one not in NEEDS_NOTHING}


def granted(*names: str) -> set[str]:
    """The calls that the policies of these names allow."""
    given = (grant for name in names for grant in COMMANDS[name] if grant.calls)
    return {action for grant in given for action in grant.actions}


def granted_to(module: str) -> set[str]:
    """The calls that a command is allowed with whatever options."""
    command = module.replace("_", "-")
    return granted(*(name for name in COMMANDS if name.split()[0] == command))


@contextmanager
def allowed(module: str) -> Iterator[None]:
    """Inside, a command makes no call that its policies do not allow."""
    with recorded() as calls:
        yield
    missing = needed(calls) - granted_to(module)
    assert not missing, f"gptj_serve.aws.grants.COMMANDS allows {module} too little: {sorted(missing)}"
