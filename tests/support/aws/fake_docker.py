"""A ``docker`` for tests: images in a file, a registry in a file, and ECR's as moto has it.

It notes every call with its stdin and the folder of its configuration. As a program it imports only what is
fast, or where it is needed.
"""

import binascii
import json
import os
import signal
import sys
from collections.abc import Mapping

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


class Failure(Exception):
    """What docker says when it fails."""


def read(name: str, folder: str | None = None):  # type: ignore[no-untyped-def]
    """A part of the state."""
    path = f"{folder or os.environ['FAKE_DOCKER']}/{name}.json"
    if not os.path.exists(path):
        return {}
    with open(path) as file:
        return json.load(file)


def write(name: str, content: object, folder: str | None = None) -> None:
    """Change a part of the state."""
    with open(f"{folder or os.environ['FAKE_DOCKER']}/{name}.json", "w") as file:
        json.dump(content, file)


def digest_of(text: str) -> str:
    """As registries address content."""
    import hashlib

    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def find(images: dict, name: str) -> dict:
    """An image by name or id."""
    for image in images.values():
        if name == image["Id"] or name in image["RepoTags"] or f"{name}:latest" in image["RepoTags"]:
            return image
    raise Failure(f"Error: No such image: {name}")


def manifest_of(image: dict) -> str:
    """What a registry has of it."""
    layers = [{"digest": image["Id"]}]
    return json.dumps(
        {"schemaVersion": 2, "mediaType": MANIFEST, "config": {"digest": image["Id"]}, "layers": layers}
    )


def add_image(tag: str, labels: dict[str, str], platform: str = "linux/amd64") -> str:
    """Put an image there; returns its id."""
    images = read("images")
    for image in images.values():
        image["RepoTags"] = [one for one in image["RepoTags"] if one != tag]
    image_id = digest_of(f"{platform} {labels}")
    system, arch = platform.split("/")
    kept = images.get(image_id, {}).get("RepoTags", [])
    images[image_id] = {
        "Id": image_id,
        "RepoTags": [*kept, tag],
        "RepoDigests": [],
        "Size": 2_000_000_000,
        "Os": system,
        "Architecture": arch,
        "Config": {"Labels": labels},
    }
    write("images", images)
    return image_id


def build(*options: str) -> None:
    settings = dict(
        one.removeprefix("--build-arg=").split("=", 1) for one in options if "--build-arg=" in one
    )
    (tag,) = [one.removeprefix("--tag=") for one in options if one.startswith("--tag=")]
    print("Step 1/1 : FROM somewhere")
    add_image(f"{tag}:latest", {"org.opencontainers.image.version": settings["VERSION"], **settings})


def tag(source: str, name: str) -> None:
    images = read("images")
    image = find(images, source)
    image["RepoTags"] = sorted({*image["RepoTags"], name})
    write("images", images)


def remove(name: str) -> None:
    images = read("images")
    image = find(images, name)
    image["RepoTags"].remove(name)
    assert image["RepoTags"], "that was the last name: the image would be gone"
    write("images", images)


def login(host: str, folder: str) -> None:
    content = read("config", folder)
    assert host in content["auths"], "a keychain would get the password"
    secret = binascii.b2a_base64(f"AWS:{read('stdin')}".encode(), newline=False).decode()
    content["auths"][host] = {"auth": secret}
    write("config", content, folder)
    print("Login Succeeded")


def push(reference: str, folder: str) -> None:
    image = find(read("images"), reference)
    host, name = reference.rpartition(":")[0].split("/", 1)
    print(f"The push refers to repository [{host}/{name}]\nab: Preparing\nab: Pushed", flush=True)
    if ".dkr.ecr." in host:
        if not read("config", folder)["auths"][host].get("auth"):
            raise Failure("no basic auth credentials")
        put_image(name, reference.rpartition(":")[2], manifest_of(image))
    else:
        write("registry", {**read("registry"), reference: manifest_of(image)})


def put_image(name: str, tag: str, manifest: str) -> None:
    """What pushing to ECR ends in, sent to moto."""
    import urllib.error
    import urllib.request

    headers = {
        "X-Amz-Target": "AmazonEC2ContainerRegistry_V20150921.PutImage",
        "Content-Type": "application/x-amz-json-1.1",
        "Authorization": "AWS4-HMAC-SHA256 Credential=fake/20261101/eu-west-1/ecr/aws4_request, "
        "SignedHeaders=host, Signature=fake",
    }
    body = {"repositoryName": name, "imageTag": tag, "imageManifest": manifest}
    request = urllib.request.Request(os.environ["AWS_ENDPOINT_URL"], json.dumps(body).encode(), headers)
    try:
        urllib.request.urlopen(request, timeout=60).close()
    except urllib.error.HTTPError as error:
        raise Failure(error.read().decode()) from None


def manifest_inspect(reference: str) -> None:
    manifest = read("registry").get(reference)
    if manifest is None:
        raise Failure(f"no such manifest: {reference}")
    descriptor = {"mediaType": MANIFEST, "digest": digest_of(manifest)}
    print(json.dumps({"Descriptor": descriptor, "SchemaV2Manifest": json.loads(manifest)}))


def run(argv: list[str], folder: str) -> None:
    match argv:
        case ["version", *_]:
            print(read("wishes").get("arch", "amd64"))
        case ["buildx", "version"] if read("wishes").get("buildx") == "ok":
            pass
        case ["build" | "buildx", *rest] if rest != ["version"]:
            build(*rest)
        case ["image", "inspect", name]:
            print(json.dumps([find(read("images"), name)]))
        case ["image", "rm", "--no-prune", name]:
            remove(name)
        case ["tag", source, name]:
            tag(source, name)
        case ["login", "--username", "AWS", "--password-stdin", host]:
            login(host, folder)
        case ["push", reference]:
            push(reference, folder)
        case ["manifest", "inspect", *_, reference]:
            manifest_inspect(reference)
        case _:
            raise Failure(f"docker: unknown command: docker {' '.join(argv)}")


def main(argv: list[str], stdin: str, environment: Mapping[str, str]) -> int:
    folder = environment["DOCKER_CONFIG"]
    write("stdin", stdin)
    with open(f"{environment['FAKE_DOCKER']}/calls.jsonl", "a") as calls:
        calls.write(json.dumps({"argv": argv, "stdin": stdin, "config": folder}) + "\n")
    wish = read("wishes").get(argv[0])
    if wish == "hang":
        write("hangs", os.getpid())
        signal.alarm(60)
        signal.pause()
    try:
        if wish not in (None, "ok"):
            raise Failure(wish)
        run(argv, folder)
    except Failure as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], sys.stdin.read(), os.environ))
