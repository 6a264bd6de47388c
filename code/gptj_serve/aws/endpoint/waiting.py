"""Waits until an endpoint or its component has settled, and shows its status and for how long."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError, ConnectionError, HTTPClientError

from gptj_serve.aws.common.console import Console
from gptj_serve.aws.endpoint.kinds import ENDPOINT, Kind
from gptj_serve.aws.endpoint.lookup import Description

POLL_S = 15.0
REPEAT_S = 120.0
"""After so many seconds, an unchanged status is shown again, for people who look at the end of a log."""

PATIENCE_S = 300.0
"""How many seconds AWS may be unreachable while it is waited for."""

_PASSING = (
    "ThrottlingException",
    "Throttling",
    "ServiceUnavailable",
    "InternalFailure",
    "InternalServerError",
)


@dataclass(frozen=True)
class Clock:
    """The source of time."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


SYSTEM_CLOCK = Clock()


class Waiter:
    """Watches one endpoint or inference component.

    Args:
        sagemaker: boto3 client.
        name: The name of what is watched.
        console: Where to show what happens.
        kind: Whether it is an endpoint or a component.
    """

    def __init__(self, sagemaker: Any, name: str, console: Console, kind: Kind = ENDPOINT) -> None:
        self._sagemaker, self._name, self._console, self._kind = sagemaker, name, console, kind
        self.clock = SYSTEM_CLOCK
        self._start_s = self.clock.now()
        self._shown: str | None = None
        self._shown_s = 0.0

    @property
    def elapsed_s(self) -> float:
        """Seconds since this was made."""
        return self.clock.now() - self._start_s

    def settle(self) -> Description | None:
        """Wait until nothing goes on by itself any more.

        Returns:
            The description; None if it is gone.
        """
        while True:
            found = self.look()
            is_busy = self._kind.status(found) in self._kind.busy
            if self._kind is ENDPOINT:
                self._show(_status(found))
            elif is_busy:
                self._show(f"component {self._name} is {self._kind.status(found)}")
            if not is_busy:
                return found
            self.clock.sleep(POLL_S)

    def pause(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.sleep(seconds)

    def _show(self, status: str) -> None:
        now_s = self.clock.now()
        if status != self._shown or now_s - self._shown_s >= REPEAT_S:
            self._console.progress(f"{duration(self.elapsed_s):>7}  {status}")
            self._shown, self._shown_s = status, now_s

    def look(self) -> Description | None:
        """The present description, None if it is gone; AWS may be silent for some minutes.

        Raises:
            ClientError: AWS refuses, or throttles for longer than that.
            BotoCoreError: AWS cannot be reached for longer than that.
        """
        give_up_s = self.clock.now() + PATIENCE_S
        while True:
            try:
                return self._kind.describe(self._sagemaker, self._name)
            except (ConnectionError, HTTPClientError, ClientError) as error:
                if not _passes(error) or self.clock.now() > give_up_s:
                    raise
                self._show("AWS does not answer; trying on")
                self.clock.sleep(POLL_S)


def duration(seconds: float) -> str:
    """Minutes and seconds: "7:05"."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _passes(error: Exception) -> bool:
    return not isinstance(error, ClientError) or error.response["Error"]["Code"] in _PASSING


def _status(endpoint: Description | None) -> str:
    if endpoint is None:
        return "gone"
    status = str(endpoint["EndpointStatus"])
    pending = endpoint.get("PendingDeploymentSummary", {}).get("ProductionVariants", [])
    steps = [step for variant in pending for step in variant.get("VariantStatus", [])]
    details = [step.get("StatusMessage") or step["Status"] for step in steps]
    return f"{status} ({'; '.join(dict.fromkeys(details))})" if details else status
