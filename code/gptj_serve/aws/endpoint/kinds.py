"""Endpoints and inference components, which SageMaker starts, updates and deletes alike, by other names."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gptj_serve.aws.endpoint.lookup import Description, describe_component, describe_endpoint


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of thing that can be waited for.

    Attributes:
        noun: What stands before its name in a sentence.
        status_key: The member of its description that has its status.
        busy: Statuses that end by themselves; until then it can be neither updated nor deleted.
        logs: The folder of log groups that its containers write to.
        describe: Asks SageMaker for a description by name; gives None if there is none.
    """

    noun: str
    status_key: str
    busy: tuple[str, ...]
    logs: str
    describe: Callable[[Any, str], Description | None]

    def status(self, found: Description | None) -> str | None:
        """The status of what is described; None if there is none."""
        return str(found.get(self.status_key)) if found else None

    def settled(self, found: Description | None) -> Description | None:
        """The description as it will be when what goes on has ended well; None if it will be gone."""
        status = self.status(found)
        if found is None or status == "Deleting":
            return None
        if status not in self.busy:
            return found
        pending = found.get("PendingDeploymentSummary", {}).get("EndpointConfigName")
        moves = {"EndpointConfigName": pending} if pending and status != "RollingBack" else {}
        return {**found, self.status_key: "InService", **moves}


ENDPOINT = Kind(
    "",
    "EndpointStatus",
    ("Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting"),
    "/aws/sagemaker/Endpoints",
    describe_endpoint,
)
COMPONENT = Kind(
    "the component ",
    "InferenceComponentStatus",
    ("Creating", "Updating", "Deleting"),
    "/aws/sagemaker/InferenceComponents",
    describe_component,
)
