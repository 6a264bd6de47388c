"""Makes AWS clients from the user's own configuration, all with one set of options."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import boto3
from botocore.config import Config

import gptj_serve
from gptj_serve.aws.common.errors import no_region

CONFIG = Config(retries={"mode": "standard"}, user_agent_extra=f"gptj-serve/{gptj_serve.__version__}")


@dataclass(frozen=True)
class Aws:
    """An account and a region of AWS.

    Attributes:
        session: boto3's session. Use `client` for its clients, so that all have the same options.
        region: The region, for example ``eu-west-1``.
    """

    session: Any
    region: str

    @cached_property
    def account(self) -> str:
        """The account's twelve digits; the first use asks AWS and fails without valid credentials."""
        return str(self.client("sts").get_caller_identity()["Account"])

    @cached_property
    def partition(self) -> str:
        """What ARNs begin with after ``arn:``, for example ``aws`` or ``aws-cn``."""
        return str(self.session.get_partition_for_region(self.region))

    def client(self, service: str) -> Any:
        """The client of a service, for example ``ecr``. It is made once, and threads may share it."""
        if service not in self._clients:
            self._clients[service] = self.session.client(service, config=CONFIG)
        return self._clients[service]

    @cached_property
    def _clients(self) -> dict[str, Any]:
        return {}


def partition_of(region: str | None, profile: str | None) -> str:
    """What ARNs begin with after ``arn:`` in a region, by default the configured one; AWS is not asked."""
    session = boto3.Session(region_name=region, profile_name=profile)
    return str(session.get_partition_for_region(session.region_name)) if session.region_name else "aws"


def connect(region: str | None = None, profile: str | None = None) -> Aws:
    """Use the usual AWS configuration (environment, profiles, instance role); AWS is not asked yet.

    Args:
        region: Wins over the configured region.
        profile: Wins over the configured profile.

    Raises:
        CommandError: No region is set.
        BotoCoreError: There is no such profile.
    """
    session = boto3.Session(region_name=region, profile_name=profile)
    if session.region_name is None:
        raise no_region()
    return Aws(session, session.region_name)
