"""What an endpoint may share with others: model data and the image's repository.

They are deleted only if we made them: then model data has the list of its files beside it, and the repository
has a tag.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from gptj_serve.aws.common.clients import Aws
from gptj_serve.aws.common.plan import Action
from gptj_serve.aws.common.s3 import S3Url, owner
from gptj_serve.aws.endpoint.inventory import Inventory
from gptj_serve.aws.endpoint.lookup import describe_model
from gptj_serve.aws.endpoint.report import ModelReport, report_model
from gptj_serve.aws.image.repository import find_repository
from gptj_serve.aws.image.uri import ImageUri
from gptj_serve.aws.model import manifest

MAX_KEYS = 1000
"""How many objects one call deletes at most."""


@dataclass(frozen=True, slots=True)
class Belongings:
    """What is deleted with an endpoint when everything is.

    Attributes:
        actions: The calls that delete it.
        kept: What stays, and why.
    """

    actions: tuple[Action, ...] = ()
    kept: tuple[str, ...] = ()


def find_belongings(
    aws: Aws, inventory: Inventory, model_data: str | None = None, repository: str | None = None
) -> Belongings:
    """Find model data and repositories of an endpoint; AWS is only asked.

    Args:
        aws: The account and region.
        inventory: What exists of the endpoint.
        model_data: An upload that no model names any more.
        repository: A repository that no model names any more.
    """
    mine = [one for name in inventory.resources.models if (one := _model(aws, name))]
    others = list(_others(aws, inventory))
    places = dict.fromkeys(one.data for one in mine if one.data)
    names = dict.fromkeys(name for one in mine if (name := repository_of(aws, one)))
    places.update({model_data: None} if model_data else {})
    names.update({repository: None} if repository else {})
    found = [_data(aws, place, others) for place in places]
    found += [_repository(aws, name, others) for name in names]
    actions = tuple(action for one in found for action in one.actions)
    return Belongings(actions, tuple(why for one in found for why in one.kept))


def repository_of(aws: Aws, model: ModelReport) -> str | None:
    """The name of the repository in this account and region that a model's image is in."""
    image = ImageUri.find(model.image or "")
    if image and (image.account, image.region) == (aws.account, aws.region):
        return image.repository
    return None


def _data(aws: Aws, place: str, others: list[ModelReport]) -> Belongings:
    users = sorted({one.name for one in others if one.data == place})
    if users:
        return Belongings(kept=(f"{place}: {', '.join(users)} uses it too",))
    url = S3Url.parse(place, "--model-data")
    upload = manifest.read(aws, url)
    if upload is None:
        return Belongings(kept=(f"{place}: there is nothing (left) that scripts/upload-model put there",))
    folder = url.key.rpartition("/")[0]
    archive = [url.key.rpartition("/")[2]] if upload.is_tar else []
    # the list of files is deleted last: as long as it exists, the same command finds the rest
    names = [*(archive or upload.bytes_by_name), manifest.NAME]
    keys = [f"{folder}/{name}" if folder else name for name in names]
    batches = [keys[start : start + MAX_KEYS] for start in range(0, len(keys), MAX_KEYS)]
    return Belongings(tuple(_delete_objects(aws, url, batch) for batch in batches))


def _delete_objects(aws: Aws, url: S3Url, keys: list[str]) -> Action:
    objects = {"Objects": [{"Key": key} for key in keys]}
    request = {"Bucket": url.bucket, "Delete": objects, **owner(aws, url.bucket)}
    return Action("s3", "delete_objects", request, f"model data {url}")


def _repository(aws: Aws, name: str, others: list[ModelReport]) -> Belongings:
    users = sorted({one.name for one in others if repository_of(aws, one) == name})
    if users:
        return Belongings(kept=(f"repository {name}: {', '.join(users)} uses it too",))
    found = find_repository(aws, name)
    if found is None:
        return Belongings()
    if not found.is_ours:
        return Belongings(kept=(f"repository {name}: scripts/push did not make it",))
    request = {"repositoryName": name, "force": True}
    return Belongings((Action("ecr", "delete_repository", request, "repository with all its images"),))


def _others(aws: Aws, inventory: Inventory) -> Iterator[ModelReport]:
    """The account's models that do not belong to the endpoint, whoever made them."""
    pages = aws.client("sagemaker").get_paginator("list_models").paginate()
    for page in pages:
        for item in page["Models"]:
            if item["ModelName"] not in inventory.resources.models:
                model = _model(aws, item["ModelName"])
                if model:
                    yield model


def _model(aws: Aws, name: str) -> ModelReport | None:
    found = describe_model(aws.client("sagemaker"), name)
    return report_model(found) if found else None
