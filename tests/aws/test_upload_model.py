"""The model's files in S3: all of them, no others, whole, and only what is missing goes up."""

import base64
import io
import json
import os
import signal
import tarfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from botocore.httpsession import URLLib3Session

from gptj_serve import demo
from gptj_serve.aws.common import plan
from gptj_serve.aws.common.clients import Aws
from gptj_serve.aws.common.plan import Action
from gptj_serve.aws.common.s3 import S3Url
from gptj_serve.aws.model import manifest, tarball, transfer
from gptj_serve.aws.model.files import read_all, serving_paths
from gptj_serve.models.model_dir import find_checkpoint
from support import tiny_model as tiny
from support.aws.killed_commands import Killer
from support.aws.run_commands import Result, call
from support.server import ROOT

BUCKET = "sagemaker-eu-west-1-123456789012"
DEMO_FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
PART_BYTES = 5 << 20
"""The least that S3 takes; the demo model's weights are two parts then."""

RunAndKill = Callable[[str, int, Path], int]


@pytest.fixture(autouse=True)
def work_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is written to the cache of whoever runs the tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/gptj-serve"


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    """A tiny model whose weights are a pickle."""
    return write_model(tmp_path / "tiny-j", files="pickle")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny model that goes up as it is."""
    return write_model(tmp_path / "model", dtype=tiny.torch.float16)


def write_model(directory: Path, **options: Any) -> Path:
    """A tiny model with a tokenizer."""
    tiny.write_model(directory, **options)
    for name in TOKENIZER_FILES:
        (directory / name).write_bytes((demo.MODEL_DIR / name).read_bytes())
    return directory


def contents(directory: Path, names: Iterable[str] | None = None) -> dict[str, bytes]:
    """A directory's files, all or some."""
    wanted = os.listdir(directory) if names is None else names
    return {name: (directory / name).read_bytes() for name in wanted}


def upload(source: Path | str, *arguments: str) -> Result:
    """Run the command in this process."""
    return call("upload_model", str(source), *arguments)


def objects(aws: Aws, url: str) -> dict[str, bytes]:
    """Everything under a prefix, by name."""
    place, s3 = S3Url.parse(url, "url"), aws.client("s3")
    listed = s3.list_objects_v2(Bucket=place.bucket, Prefix=place.key).get("Contents", [])
    return {
        one["Key"].removeprefix(place.key): s3.get_object(Bucket=place.bucket, Key=one["Key"])["Body"].read()
        for one in listed
    }


def versions(aws: Aws, bucket: str) -> dict[str, str]:
    """The version of every object of a bucket: another one if it was put there again since the last look."""
    s3 = aws.client("s3")
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    listed = s3.list_object_versions(Bucket=bucket).get("Versions", [])
    return {one["Key"]: one["VersionId"] for one in listed if one["IsLatest"]}


@pytest.fixture
def bucket(aws: Aws) -> str:
    """A bucket of the user's own."""
    where = {"LocationConstraint": aws.region}
    aws.client("s3").create_bucket(Bucket="mine", CreateBucketConfiguration=where)
    return "mine"


class TestUpload:
    def test_every_file_that_serving_needs_and_a_manifest(self, aws: Aws) -> None:
        result = upload(demo.MODEL_DIR, "--json")
        url = result.json["model_data"]
        assert url.startswith(f"s3://{BUCKET}/gptj-serve/models/model-")
        found = objects(aws, url)
        told = json.loads(found.pop(manifest.NAME))
        assert found == contents(demo.MODEL_DIR, DEMO_FILES)
        assert told["files"] == {name: len(content) for name, content in found.items()}
        assert told["weight_types"] == ["F16"]
        assert result.json["bytes"] == sum(map(len, found.values()))
        assert (result.json["num_files"], result.json["uploaded_files"]) == (6, 6)
        assert "left out: metrics.json" in result.err
        whole = manifest.read(aws, S3Url.parse(url, "url"))
        assert whole is not None
        assert (whole.sha256, whole.num_bytes) == (result.json["sha256"], result.json["bytes"])
        assert whole.num_weights == find_checkpoint(demo.MODEL_DIR).num_weights

    def test_the_default_bucket_is_made_and_closed(self, aws: Aws, model: Path) -> None:
        result = upload(model)
        assert result.out.startswith(f"s3://{BUCKET}/gptj-serve/models/model-")
        assert "create_bucket" in result.err
        s3 = aws.client("s3")
        blocked = s3.get_public_access_block(Bucket=BUCKET)["PublicAccessBlockConfiguration"]
        assert set(blocked.values()) == {True}
        assert s3.get_bucket_location(Bucket=BUCKET)["LocationConstraint"] == aws.region
        assert "create_bucket" not in upload(model).err

    def test_one_that_others_made_stays_as_it_is(self, aws: Aws, model: Path) -> None:
        s3 = aws.client("s3")
        s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": aws.region})
        result = upload(model)
        assert result.code == 0
        assert (
            f"note: public access to {BUCKET} is not blocked: `aws s3api put-public-access-block"
            in result.err
        )
        with pytest.raises(ClientError, match="NoSuchPublicAccessBlockConfiguration"):
            s3.get_public_access_block(Bucket=BUCKET)

    def test_a_key_that_is_none(self, model: Path) -> None:
        result = upload(model, "--kms-key", "my key")
        assert result.code == 2
        assert "--kms-key my key: no key of KMS" in result.err

    def test_in_us_east_1_there_is_no_constraint(self, aws: Aws, model: Path) -> None:
        assert aws.account
        result = upload(model, "--region", "us-east-1")
        assert result.out.startswith("s3://sagemaker-us-east-1-123456789012/")

    def test_what_is_there_stays(self, aws: Aws, model: Path) -> None:
        upload(model)
        before = versions(aws, BUCKET)
        again = upload(model, "--json")
        assert again.json["uploaded_files"] == 0
        assert "all of it was there already" in again.err
        assert versions(aws, BUCKET) == before

    def test_times_of_files_do_not_matter_and_contents_do(self, aws: Aws, bucket: str, model: Path) -> None:
        to = f"s3://{bucket}/m"
        upload(model, "--to", to)
        before = versions(aws, bucket)
        os.utime(model / "tokenizer.json", (1, 1))
        config = (model / "config.json").read_text()
        changed = config.replace('"n_positions": 64', '"n_positions": 65')
        assert len(changed) == len(config)
        (model / "config.json").write_text(changed)
        result = upload(model, "--to", to, "--json")
        assert result.json["uploaded_files"] == 1
        after = versions(aws, bucket)
        assert {key for key in after if after[key] != before[key]} == {"m/config.json", "m/gptj-serve.json"}
        assert objects(aws, result.json["model_data"])["config.json"] == changed.encode()

    def test_parts_with_a_checksum_of_the_whole(self, aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(transfer, "PART_BYTES", PART_BYTES)
        url = S3Url.parse(upload(demo.MODEL_DIR).out.strip(), "url")
        request = {"Bucket": url.bucket, "Key": f"{url.key}model.safetensors"}
        head = aws.client("s3").head_object(**request, ChecksumMode="ENABLED")
        assert head["ETag"].endswith('-2"')
        assert head["ChecksumType"] == "FULL_OBJECT"
        assert objects(aws, str(url)).items() >= contents(demo.MODEL_DIR, DEMO_FILES).items()

    def test_s3_is_told_the_checksum_of_every_small_file(
        self, aws: Aws, model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """S3 refuses what differs from it; moto takes anything."""
        assert aws.account
        told, really = {}, URLLib3Session.send

        def send(session: URLLib3Session, request: Any) -> Any:
            if request.method == "PUT" and request.url.endswith((".json", ".safetensors")):
                told[request.url.rpartition("/")[2]] = request.headers["x-amz-checksum-crc32"]
            return really(session, request)

        monkeypatch.setattr(URLLib3Session, "send", send)
        upload(model)
        del told[manifest.NAME]
        assert {name: base64.b64decode(value) for name, value in told.items()} == {
            path.name: zlib.crc32(path.read_bytes()).to_bytes(4, "big") for path in model.iterdir()
        }

    def test_a_key_of_kms(self, aws: Aws, bucket: str, model: Path) -> None:
        key = "1234abcd-12ab-34cd-56ef-1234567890ab"
        result = upload(model, "--to", f"s3://{bucket}/", "--kms-key", key)
        url = S3Url.parse(result.out.strip(), "url")
        for name in (*contents(model), manifest.NAME):
            head = aws.client("s3").head_object(Bucket=url.bucket, Key=url.key + name)
            assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", key)

    def test_a_pickle_goes_up_as_safetensors(self, aws: Aws, pickled: Path, work_dir: Path) -> None:
        result = upload(pickled, "--json")
        found = objects(aws, result.json["model_data"])
        assert result.json["model_data"].startswith(f"s3://{BUCKET}/gptj-serve/models/tiny-j-")
        assert set(found) == {"config.json", "model.safetensors", manifest.NAME, *TOKENIZER_FILES}
        (converted,) = work_dir.iterdir()
        assert str(converted) in result.err
        again = upload(pickled, "--json")
        assert (again.json["uploaded_files"], again.json["model_data"]) == (0, result.json["model_data"])

    def test_what_sagemaker_fetches_is_a_model_that_serving_takes(
        self, aws: Aws, pickled: Path, tmp_path: Path
    ) -> None:
        """The manifest is no obstacle."""
        fetched = tmp_path / "opt-ml-model"
        fetched.mkdir()
        for name, content in objects(aws, upload(pickled).out.strip()).items():
            (fetched / name).write_bytes(content)
        assert (fetched / manifest.NAME).exists()
        assert find_checkpoint(fetched).num_weights == find_checkpoint(pickled).num_weights


class TestWhatIsUnderAPrefix:
    def test_another_model_takes_its_place(self, aws: Aws, bucket: str, model: Path, tmp_path: Path) -> None:
        to = f"s3://{bucket}/m/"
        sharded = write_model(tmp_path / "a", files="sharded safetensors", dtype=tiny.torch.float16)
        upload(sharded, "--to", to)
        assert set(objects(aws, to)) == {*contents(sharded), manifest.NAME}
        result = upload(model, "--to", to)
        assert set(objects(aws, to)) == {*contents(model), manifest.NAME}
        assert "also for endpoints that use it" in result.err

    def test_a_folder_object_is_taken_away(self, aws: Aws, bucket: str, model: Path) -> None:
        aws.client("s3").put_object(Bucket=bucket, Key="m/", Body=b"")
        upload(model, "--to", f"s3://{bucket}/m/")
        assert set(objects(aws, f"s3://{bucket}/m/")) == {*contents(model), manifest.NAME}

    @pytest.mark.parametrize("key", ["m/notes.txt", "m/v2/config.json", "m/v2/"])
    def test_what_is_not_ours_stops_it_before_anything_changes(
        self, aws: Aws, bucket: str, model: Path, key: str
    ) -> None:
        aws.client("s3").put_object(Bucket=bucket, Key=key, Body=b"mine")
        result = upload(model, "--to", f"s3://{bucket}/m/")
        assert result.code == 1
        assert f"s3://{bucket}/{key}: not put there by upload-model" in result.err
        assert set(objects(aws, f"s3://{bucket}/")) == {key}

    def test_a_model_below_another_is_not_ours_to_remove(self, aws: Aws, bucket: str, model: Path) -> None:
        upload(model, "--to", f"s3://{bucket}/m/v2/")
        assert upload(model, "--to", f"s3://{bucket}/m/").code == 1
        assert set(objects(aws, f"s3://{bucket}/m/v2/")) == {*contents(model), manifest.NAME}

    def test_neighbours_whose_names_begin_alike_are_left_alone(
        self, aws: Aws, bucket: str, model: Path
    ) -> None:
        aws.client("s3").put_object(Bucket=bucket, Key="model-b/x", Body=b"mine")
        assert upload(model, "--to", f"s3://{bucket}/model").code == 0
        assert objects(aws, f"s3://{bucket}/model-b/") == {"x": b"mine"}


class TestTar:
    def test_one_archive_with_the_files_at_its_top(self, aws: Aws, model: Path, work_dir: Path) -> None:
        result = upload(model, "--tar", "--json")
        assert result.json["model_data"].endswith("-tar/model.tar.gz")
        assert "starts more slowly" in result.err
        packed = objects(aws, result.json["model_data"])[""]
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            found = {one.name: archive.extractfile(one).read() for one in archive}  # type: ignore[union-attr]
        assert found == contents(model)
        assert not list(work_dir.glob("*.tar.gz"))
        whole = manifest.read(aws, S3Url.parse(result.json["model_data"], "url"))
        assert whole is not None
        assert whole.is_tar

    def test_it_is_neither_packed_nor_sent_again(
        self, aws: Aws, model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        upload(model, "--tar")
        before = versions(aws, BUCKET)
        monkeypatch.setattr(tarball, "write", None)
        again = upload(model, "--tar", "--json")
        assert again.json["uploaded_files"] == 0
        assert versions(aws, BUCKET) == before

    def test_files_of_the_same_model_stay_where_they_are(self, aws: Aws, model: Path) -> None:
        url = upload(model).out.strip()
        upload(model, "--tar")
        assert set(objects(aws, url)) == {*contents(model), manifest.NAME}

    def test_nothing_in_it_tells_when_and_by_whom(self, tmp_path: Path) -> None:
        archives = []
        for name, mode in (("a", 0o600), ("b", 0o644)):
            directory = write_model(tmp_path / name)
            for path in directory.iterdir():
                path.chmod(mode)
                os.utime(path, (mode, mode))
            files = read_all(serving_paths(find_checkpoint(directory)), lambda _: None)
            tarball.write(tmp_path / f"{name}.tar.gz", files, lambda _: None)
            archives.append((tmp_path / f"{name}.tar.gz").read_bytes())
        assert archives[0] == archives[1]
        assert archives[0][4:8] == bytes(4)  # when it was packed, in gzip's header


class TestDryRun:
    @pytest.mark.parametrize("options", [[], ["--tar"]])
    def test_it_shows_requests_that_botocore_takes_and_changes_nothing(
        self, aws: Aws, model: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
    ) -> None:
        monkeypatch.setattr(transfer, "PART_BYTES", 30_000)  # nothing is sent
        told = upload(model, "--dry-run", "--json", *options).json
        actions = [Action(one["service"], one["operation"], one["request"]) for one in told["plan"]]
        for action in actions:
            plan.validate(action)
        operations = [action.operation for action in actions]
        assert operations[:2] == ["create_bucket", "put_public_access_block"]
        assert operations[-1] == "put_object"
        assert "create_multipart_upload" in operations
        assert aws.client("s3").list_buckets()["Buckets"] == []

    @pytest.mark.parametrize("options", [[], ["--tar"]])
    def test_it_knows_where_it_goes_and_that_it_is_there(
        self, aws: Aws, model: Path, options: list[str]
    ) -> None:
        assert aws.account
        told = upload(model, "--dry-run", "--json", *options).json
        assert upload(model, "--json", *options).json["model_data"] == told["model_data"]
        assert upload(model, "--dry-run", "--json", *options).json["plan"] == []
        assert "Nothing to do." in upload(model, "--dry-run", *options).out

    def test_what_would_be_converted(self, aws: Aws, pickled: Path, work_dir: Path) -> None:
        result = upload(pickled, "--dry-run")
        assert "write 1 files, " in result.out
        assert f"s3://{BUCKET}/gptj-serve/models/tiny-j-HASH/" in result.out
        assert not work_dir.exists()
        assert aws.client("s3").list_buckets()["Buckets"] == []
        upload(pickled)
        assert upload(pickled, "--dry-run", "--json").json["plan"] == []


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "code", "said"),
        [
            (["/nonexistent"], 2, "no such directory, and no repository"),
            (["nothing"], 2, "ORGANISATION/NAME"),
            ([str(demo.MODEL_DIR), "--revision", "x"], 2, "only the hub has revisions"),
            ([str(demo.MODEL_DIR), "--to", "bucket/x"], 2, "--to bucket/x: not an S3 address"),
            ([str(demo.MODEL_DIR), "--to", "s3://b/x"], 2, "BUCKET of 3 to 63 characters"),
            ([str(demo.MODEL_DIR), "--shard-size", "0"], 2, "from 0.001 to 50"),
            ([str(demo.MODEL_DIR), "--to", "s3://nobody-has-this/"], 1, "there is no bucket nobody-has-this"),
            ([str(ROOT / "docs")], 1, "docs: no model there"),
        ],
    )
    def test_wrong_arguments(self, aws: Aws, arguments: list[str], code: int, said: str) -> None:
        assert aws.account
        result = call("upload_model", *arguments)
        assert result.code == code
        assert said in result.err
        assert "GPTJ_MODEL_DIR" not in result.err

    def test_a_bucket_elsewhere(self, aws: Aws) -> None:
        s3 = aws.session.client("s3", region_name="us-east-2")
        s3.create_bucket(Bucket="far", CreateBucketConfiguration={"LocationConstraint": "us-east-2"})
        result = upload(demo.MODEL_DIR, "--to", "s3://far/")
        assert result.code == 1
        assert "the bucket far is in us-east-2; endpoints of eu-west-1" in result.err

    def test_a_model_without_a_tokenizer_is_not_uploaded(self, aws: Aws, tmp_path: Path) -> None:
        result = upload(tiny.write_model(tmp_path / "m", dtype=tiny.torch.float16))
        assert result.code == 1
        assert "no tokenizer.json" in result.err
        assert aws.client("s3").list_buckets()["Buckets"] == []

    def test_code_in_a_pickle_is_not_run(self, aws: Aws, tmp_path: Path) -> None:
        class Evil:
            def __reduce__(self) -> Any:
                return os.mkdir, (str(tmp_path / "was-run"),)

        directory = write_model(tmp_path / "evil", files="pickle")
        tiny.torch.save({"transformer.wte.weight": Evil()}, directory / "pytorch_model.bin")
        result = upload(directory)
        assert result.code == 1
        assert "asks for code to be run" in result.err
        assert not (tmp_path / "was-run").exists()
        assert aws.client("s3").list_buckets()["Buckets"] == []

    def test_a_file_that_changes_meanwhile(
        self, aws: Aws, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        directory = tmp_path / "model"
        directory.mkdir()
        for name, content in contents(demo.MODEL_DIR, DEMO_FILES).items():
            (directory / name).write_bytes(content)
        weights, really = directory / "model.safetensors", transfer.plan

        def change_then_plan(*arguments: Any) -> Any:
            content = bytearray(weights.read_bytes())
            content[-1] ^= 1
            weights.write_bytes(content)
            return really(*arguments)

        monkeypatch.setattr(transfer, "PART_BYTES", PART_BYTES)
        monkeypatch.setattr(transfer, "plan", change_then_plan)
        result = upload(directory, "--to", f"s3://{bucket}/m/")
        assert result.code == 1
        assert f"{weights} was changed while it was uploaded" in result.err
        assert manifest.NAME not in objects(aws, f"s3://{bucket}/m/")


class TestInterrupted:
    URL = S3Url(BUCKET, "m/")

    @pytest.fixture
    def run_and_kill(self, killer: Killer) -> RunAndKill:
        """Uploads in a process that dies at a certain point; its exit code."""

        def run(where: str, number: int, source: Path) -> int:
            return killer.run(where, number, "upload_model", str(source), "--to", str(self.URL))[0]

        return run

    def finish(self, aws: Aws, source: Path, names: Iterable[str] | None = None) -> None:
        """The next run ends where one that nothing happened to would have."""
        assert upload(source, "--to", str(self.URL)).code == 0
        found = objects(aws, str(self.URL))
        assert manifest.NAME in found
        del found[manifest.NAME]
        assert found == contents(source, names)
        assert manifest.read(aws, self.URL) is not None
        assert aws.client("s3").list_multipart_uploads(Bucket=BUCKET).get("Uploads", []) == []
        assert upload(source, "--to", str(self.URL), "--json").json["uploaded_files"] == 0

    def test_killed_before_there_is_a_bucket(self, aws: Aws, run_and_kill: RunAndKill, model: Path) -> None:
        assert run_and_kill("request", 1, model) == -signal.SIGKILL
        assert aws.client("s3").list_buckets()["Buckets"] == []
        self.finish(aws, model)

    @pytest.mark.parametrize("number", [2, 8])
    def test_killed_before_a_request(
        self, aws: Aws, run_and_kill: RunAndKill, model: Path, number: int
    ) -> None:
        """2: the bucket is open. 8: only the manifest is missing."""
        assert run_and_kill("request", number, model) == -signal.SIGKILL
        assert manifest.read(aws, self.URL) is None
        before = versions(aws, BUCKET)
        assert len(before) == {2: 0, 8: 5}[number]
        self.finish(aws, model)
        after = versions(aws, BUCKET)
        assert {key: after[key] for key in before} == before

    def test_killed_while_parts_are_on_their_way(
        self, aws: Aws, run_and_kill: RunAndKill, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The eleventh request is the last of the weights' four, or of a small file."""
        monkeypatch.setattr(transfer, "PART_BYTES", PART_BYTES)
        assert run_and_kill("request", 11, demo.MODEL_DIR) == -signal.SIGKILL
        assert manifest.read(aws, self.URL) is None
        self.finish(aws, demo.MODEL_DIR, DEMO_FILES)

    def test_killed_while_a_model_is_replaced(
        self, aws: Aws, run_and_kill: RunAndKill, model: Path, tmp_path: Path
    ) -> None:
        upload(write_model(tmp_path / "a", dtype=tiny.torch.float16, seed=1), "--to", str(self.URL))
        assert run_and_kill("request", 2, model) == -signal.SIGKILL
        assert manifest.read(aws, self.URL) is None
        self.finish(aws, model)

    def test_killed_while_it_converts(
        self, aws: Aws, run_and_kill: RunAndKill, pickled: Path, work_dir: Path
    ) -> None:
        assert run_and_kill("shard", 1, pickled) == -signal.SIGKILL
        assert upload(pickled, "--to", str(self.URL)).code == 0
        (converted,) = work_dir.iterdir()
        names = {path.name for path in converted.iterdir() if path.name != ".lock"}
        assert objects(aws, str(self.URL)).items() >= contents(converted, names).items()

    def test_ctrl_c_leaves_no_parts(self, aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(*_: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(transfer, "PART_BYTES", PART_BYTES)
        monkeypatch.setattr(transfer, "_wait", interrupt)
        result = upload(demo.MODEL_DIR, "--to", str(self.URL))
        assert result.code == 130
        assert "Run the same command again" in result.err
        assert aws.client("s3").list_multipart_uploads(Bucket=BUCKET).get("Uploads", []) == []
        assert manifest.read(aws, self.URL) is None
