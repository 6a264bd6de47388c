"""``scripts/upload-model``: uploads a model from this machine or from the Hugging Face Hub to S3."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptj_serve.aws.common.clients import Aws, connect
from gptj_serve.aws.common.command import make_parser, run
from gptj_serve.aws.common.console import Console, size
from gptj_serve.aws.common.errors import UsageError
from gptj_serve.aws.common.plan import Action, show
from gptj_serve.aws.common.s3 import S3Url, bucket_actions, default_bucket
from gptj_serve.aws.iam.policies import check_key
from gptj_serve.aws.model import manifest, source, tarball, transfer
from gptj_serve.aws.model.files import ModelFile, left_out, read_all, serving_paths
from gptj_serve.aws.model.manifest import ModelManifest
from gptj_serve.aws.model.prepare import ModelSpec, Unprepared, prepare
from gptj_serve.aws.model.transfer import FileUpload, Remote, UploadPlan
from gptj_serve.host.regular_files import some
from gptj_serve.models.checkpoint_files import read_safetensors
from gptj_serve.models.model_dir import Checkpoint
from gptj_serve.models.remedies import GPT_J

PREFIX = "gptj-serve/models"
_HASH_DIGITS = 12
_TAR_COST = (
    "an archive starts more slowly: each new instance fetches it as one object, then unpacks it on one core "
    "(12 GB: 20 s at best) before the container starts, and holds it twice"
)
_DESCRIPTION = """Put a model where SageMaker takes it from, as safetensors in float16.

It comes from a directory or the Hugging Face Hub. Only what is missing or differs goes up."""
_EXAMPLES = f"""
scripts/upload-model                                   {GPT_J}, to SageMaker's default bucket
scripts/upload-model ~/gpt-j-6b                        a directory of this machine
scripts/upload-model ~/gpt-j-6b --to s3://mine/gpt-j/  where to
scripts/upload-model me/my-gpt-j --revision v2         another repository of the hub
scripts/upload-model ~/gpt-j-6b --tar                  as one model.tar.gz
scripts/upload-model ~/gpt-j-6b --dry-run              what would be done
"""


@dataclass(frozen=True)
class _Job:
    """A model that is ready to go up.

    Attributes:
        files: The files that are needed.
        whole: The manifest of the complete upload.
        url: The prefix that it is uploaded to.
        making: The calls that make the bucket.
        work_dir: Where an archive is made.
    """

    files: Sequence[ModelFile]
    whole: ModelManifest
    url: S3Url
    making: Sequence[Action]
    work_dir: Path

    @property
    def model_data(self) -> str:
        """The address that `deploy` takes."""
        return f"{self.url}{tarball.NAME}" if self.whole.is_tar else str(self.url)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run(_parser(), _upload_model, argv)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("upload-model", _DESCRIPTION, _EXAMPLES)
    add = parser.add_argument
    add(
        "source",
        nargs="?",
        default=GPT_J,
        help=f"directory, or ORGANISATION/NAME on the hub (default: {GPT_J})",
    )
    add("--revision", help=f"branch, tag or commit on the hub (default: float16 for {GPT_J}, else main)")
    add(
        "--to",
        metavar="s3://BUCKET[/PREFIX/]",
        help=f"where to (default: s3://sagemaker-REGION-ACCOUNT/{PREFIX}/NAME-HASH/; that bucket is made if "
        "it is missing; HASH is of the model's contents, so another model never takes its place)",
    )
    add("--name", help="what keys call the model (default: the source's name)")
    add("--tar", action="store_true", help=f"one {tarball.NAME} instead of files; {_TAR_COST}")
    add(
        "--dtype",
        choices=("float16", "keep"),
        default="float16",
        help="type of the weights in S3; on GPUs serving computes in float16 either way (default: float16)",
    )
    add(
        "--shard-size",
        type=_gigabytes,
        default="2",
        metavar="GB",
        help="size of converted files at most, 0.001 to 50 (default: 2)",
    )
    add("--work-dir", type=Path, help="where converted files go, and stay (default: ~/.cache/gptj-serve)")
    add("--kms-key", help="KMS key to encrypt with: id, ARN or alias/NAME (default: S3's own)")
    return parser


def _gigabytes(text: str) -> int:
    try:
        num_bytes = int(float(text) * 1e9)
    except (ValueError, OverflowError):
        num_bytes = 0
    if not 10**6 <= num_bytes <= 50 * 10**9:
        raise argparse.ArgumentTypeError(f"{text}: must be a number of GB from 0.001 to 50")
    return num_bytes


def _upload_model(arguments: argparse.Namespace, console: Console) -> None:
    local = source.local_directory(arguments.source)
    if local is not None and arguments.revision:
        raise UsageError(f"--revision: {arguments.source} is a directory; only the hub has revisions")
    to = S3Url.parse(arguments.to, "--to") if arguments.to else None
    if arguments.kms_key:
        check_key(arguments.kms_key)
    name = source.model_name(arguments.name or arguments.source, None if arguments.name else local)
    aws = connect(arguments.region, arguments.profile)
    # everything that can be wrong there is said before gigabytes are fetched
    to = to or S3Url(default_bucket(aws), "")
    making = bucket_actions(aws, to.bucket, console)
    wanted = _wanted(arguments)
    checkpoint = prepare(wanted, name, console, arguments.dry_run)
    if isinstance(checkpoint, Unprepared):
        _show_unprepared(checkpoint, _prefix(to, name, "HASH", arguments.tar), making, console)
        return
    job = _job(checkpoint, to, name, making, arguments.tar, wanted.work_dir, console)
    _to_s3(aws, job, arguments.kms_key, arguments.dry_run, console)


def _wanted(arguments: argparse.Namespace) -> ModelSpec:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "gptj-serve"
    return ModelSpec(
        source=arguments.source,
        revision=arguments.revision,
        keep_dtype=arguments.dtype == "keep",
        shard_bytes=arguments.shard_size,
        work_dir=(arguments.work_dir or cache).expanduser(),
    )


def _prefix(to: S3Url, name: str, contents: str, is_tar: bool) -> S3Url:
    # files and archive of a model have different places, as an endpoint may use the other one
    kind = "-tar" if is_tar else ""
    key = to.key or f"{PREFIX}/{name}-{contents[:_HASH_DIGITS]}{kind}"
    return S3Url(to.bucket, f"{key.rstrip('/')}/")


def _job(
    checkpoint: Checkpoint,
    to: S3Url,
    name: str,
    making: Sequence[Action],
    is_tar: bool,
    work_dir: Path,
    console: Console,
) -> _Job:
    """Read the files that are uploaded."""
    paths = serving_paths(checkpoint)
    if others := left_out(checkpoint.directory, paths):
        console.progress(f"Not needed to serve, and left out: {some([path.name for path in others])}")
    with console.bar(sum(path.stat().st_size for path in paths), "Reading") as add:
        files = read_all(paths, add)
    tensors = read_safetensors(checkpoint.files).tensors.values()
    weight_types = sorted({one.dtype for one in tensors if one.is_float})
    whole = manifest.of_files(name, files, checkpoint.num_weights, weight_types, is_tar)
    return _Job(files, whole, _prefix(to, name, whole.sha256, is_tar), making, work_dir)


def _to_s3(aws: Aws, job: _Job, kms_key: str | None, dry_run: bool, console: Console) -> None:
    place = transfer.target(aws, job.url, kms_key)
    is_new = any(action.operation == "create_bucket" for action in job.making)
    remote = Remote() if is_new else transfer.look(aws, place)
    uploads = _archive(job, remote, dry_run, console) if job.whole.is_tar else _files(job)
    steps = transfer.plan(place, uploads, job.whole, remote)
    if dry_run:
        sent = transfer.upload_actions(place, steps.uploads)
        _show_plan(job, [*job.making, *steps.before, *sent, *steps.after], console)
        return
    for action in job.making:
        console.progress(f"{action.operation} {job.url.bucket}: {action.note}")
        action.apply(aws)
    transfer.apply(aws, place, steps, console)
    if job.whole.is_tar:
        _archive_path(job).unlink(missing_ok=True)
    _show_result(job, steps, console)


def _files(job: _Job) -> list[FileUpload]:
    return [FileUpload(file, f"{job.url.key}{file.name}", file.sha256) for file in job.files]


def _archive(job: _Job, remote: Remote, dry_run: bool, console: Console) -> list[FileUpload]:
    """The archive instead of the files; it is made only if it has to be uploaded."""
    key, path = f"{job.url.key}{tarball.NAME}", _archive_path(job)
    file = ModelFile(path, job.whole.num_bytes, job.whole.sha256, None)
    if not dry_run and not remote.has(key, job.whole.sha256, None):
        console.progress(f"Packing {path}: {_TAR_COST}")
        if not path.exists():
            with console.bar(job.whole.num_bytes, "Packing") as add:
                tarball.write(path, job.files, add)
        with console.bar(path.stat().st_size, "Reading") as add:
            (file,) = read_all([path], add)
    return [FileUpload(file, key, job.whole.sha256)]


def _archive_path(job: _Job) -> Path:
    # an archive of this name was made of the same contents
    return job.work_dir / f"{job.whole.name}-{job.whole.sha256[:_HASH_DIGITS]}-{tarball.NAME}"


def _show_unprepared(undone: Unprepared, url: S3Url, making: Sequence[Action], console: Console) -> None:
    last = f"upload it to {url}" + (" (HASH: of its contents)" if "-HASH" in url.key else "")
    steps = [*undone.steps, last]
    calls = f"{show(making)}\n\n" if making else ""
    fields = {"plan": [*(action.to_dict() for action in making), *({"step": step} for step in steps)]}
    console.result(fields, calls + "\n".join(f"# {step}" for step in steps))


def _show_plan(job: _Job, actions: Sequence[Action], console: Console) -> None:
    fields = {"model_data": job.model_data, "plan": [action.to_dict() for action in actions]}
    console.result(fields, f"{show(actions)}\n\n# then: {job.model_data}")


def _show_result(job: _Job, steps: UploadPlan, console: Console) -> None:
    fields: dict[str, Any] = {
        "model_data": job.model_data,
        "bytes": job.whole.num_bytes,
        "num_files": len(job.files),
        "uploaded_bytes": steps.num_bytes,
        "uploaded_files": len(steps.uploads),
        "sha256": job.whole.sha256,
    }
    went_up = f"{len(steps.uploads)} uploaded" if steps.uploads else "all of it was there already"
    console.progress(f"{len(job.files)} files, {size(job.whole.num_bytes)}: {went_up}")
    console.result(fields, job.model_data)


if __name__ == "__main__":
    sys.exit(main())
