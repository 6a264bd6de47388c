"""What a command tells its user when it cannot go on."""

import re

from botocore import exceptions as boto

NOTICE = "`scripts/deploy --print-iam` prints the policies that these commands need"
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired"}
_UNKNOWN = {
    "AuthFailure",
    "IncompleteSignature",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}
_THROTTLED = {
    "RequestLimitExceeded",
    "SlowDown",
    "ThrottledException",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
}
_LIMIT = "ResourceLimitExceeded"
_LIMITED = (
    'ask for more in Service Quotas, "Amazon SageMaker", or choose another type; an update needs twice the '
    "instances while it lasts"
)
_DENIED = {"403", "AccessDenied", "AccessDeniedException", "Forbidden", "UnauthorizedOperation"}
_S3_ACTIONS = {
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "CompleteMultipartUpload": "s3:PutObject",
    "CreateBucket": "s3:CreateBucket",
    "CreateMultipartUpload": "s3:PutObject",
    "DeleteObject": "s3:DeleteObject",
    "DeleteObjects": "s3:DeleteObject",
    "GetObject": "s3:GetObject",
    "HeadBucket": "s3:ListBucket",
    "HeadObject": "s3:GetObject",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "ListObjectsV2": "s3:ListBucket",
    "PutObject": "s3:PutObject",
    "PutPublicAccessBlock": "s3:PutBucketPublicAccessBlock",
    "UploadPart": "s3:PutObject",
}
"""S3 may refuse without naming the permission, whose name is not the operation's in these cases."""


class CommandError(Exception):
    """The command failed for a reason that its user can do something about.

    Args:
        message: What is wrong, in one sentence; never a credential.
        hint: What to do about it.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(CommandError):
    """The command line is wrong; the message names the option and what it takes."""

    exit_code = 2


class Interrupted(KeyboardInterrupt):
    """Ctrl-C with a text for the user, in place of the usual one."""


def explain(error: boto.BotoCoreError | boto.ClientError) -> CommandError:
    """Turn what botocore raised into a sentence with a remedy."""
    if isinstance(error, boto.ClientError):
        return _refused(error)
    message = redact(str(error))
    if isinstance(error, boto.NoRegionError):
        return no_region()
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        return CommandError(
            f"there are no complete AWS credentials: {message}",
            "run `aws configure` or `aws sso login`, set AWS_PROFILE, or pass --profile",
        )
    if isinstance(error, boto.ProfileNotFound):
        return CommandError(message, "`aws configure list-profiles` shows the profiles there are")
    if isinstance(error, boto.SSOError | boto.TokenRetrievalError | boto.CredentialRetrievalError):
        return CommandError(
            f"the AWS credentials could not be fetched: {message}", "run `aws sso login` for this profile"
        )
    if isinstance(error, boto.SSLError):
        return CommandError(message, "AWS_CA_BUNDLE names the certificates of a proxy that breaks up TLS")
    if isinstance(error, boto.HTTPClientError | boto.ConnectionError):
        return CommandError(
            f"AWS could not be reached: {message}",
            "is there a network, is the region right, and AWS_ENDPOINT_URL, if it is set?",
        )
    return CommandError(message)


def no_region() -> CommandError:
    """The error for a command that no region is configured for."""
    return CommandError(
        "no AWS region is set", "pass --region, set AWS_DEFAULT_REGION, or run `aws configure`"
    )


def redact(text: str) -> str:
    """The text without what could be a credential: access keys, signatures, tokens, passwords in URLs."""
    text = re.sub(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}", "(access key)", text)
    text = re.sub(r"(://)[^/@\s]+@", r"\1", text)
    secret = r"(Signature|X-Amz-Signature|X-Amz-Security-Token|X-Amz-Credential|Credential|Authorization)"
    return re.sub(rf"(?i){secret}([=:]\s*)[^\s,&]+", r"\1\2(hidden)", text)


def _refused(error: boto.ClientError) -> CommandError:
    details = error.response.get("Error", {})
    code, message = str(details.get("Code", "")), redact(str(details.get("Message", "")))
    operation = error.operation_name
    if code in _EXPIRED:
        return CommandError(
            "the AWS credentials have expired", "run `aws sso login`, or fetch new ones and run this again"
        )
    if code in _UNKNOWN:
        return CommandError(
            f"AWS does not accept the credentials ({code})",
            "`aws sts get-caller-identity` shows which are used; a wrong clock has the same effect",
        )
    if is_denied(error):
        return _denied(operation, message)
    if code in _THROTTLED:
        return CommandError(
            f"AWS takes no more calls of {operation} for now ({code})",
            "run it again later, or with AWS_MAX_ATTEMPTS=10",
        )
    if re.match(r"\s*<", message):  # an HTML page comes from a proxy, or from something that is not AWS
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", code)
        return CommandError(f"{operation} failed: HTTP status {status}, with a page instead of an answer")
    return CommandError(f"{operation} failed: {message or code}", _LIMITED if code == _LIMIT else None)


def is_denied(error: boto.ClientError) -> bool:
    """Whether an error says that a permission is missing."""
    return error.response.get("Error", {}).get("Code") in _DENIED


def _denied(operation: str, message: str) -> CommandError:
    action = re.search(r"not authorized to perform:? ([\w-]+:\w+)", message)
    resource = re.search(r"on resource:? (\S+)", message)
    name = action[1] if action else _S3_ACTIONS.get(operation, operation)
    where = f" on {resource[1].rstrip('.,')}" if resource else ""
    if policy := re.search(r"with an explicit deny in an? ([\w -]+?policy|[\w -]+)(?:: (\S+))?", message):
        which = f" {policy[2].rstrip('.,')}" if policy[2] else ""
        return CommandError(
            f"{name}{where} is denied by a {policy[1].strip()}{which}",
            "a deny wins over every permission: whoever administers that policy has to make an exception",
        )
    boundary = re.search(r"because no (?!identity-based)([\w -]+?) allows", message)
    said = f": {message}" if message and not action else ""
    said = f": no {boundary[1]} allows it" if boundary else said
    return CommandError(f"permission is missing: {name}{where}{said}", NOTICE)
