"""Extracts the model server's native library (Netty's, for Unix sockets) from its archive.

Java writes the library to its temporary folder and maps it from there, which fails if that folder is mounted
"noexec", as ``docker run --tmpfs /tmp`` mounts it. So an image has it on disk, beside its Python packages.

Usage: python -m gptj_serve.serving.mms_native      (puts it there)
"""

import importlib.util
import os
import platform
import sys
import zipfile
from pathlib import Path

from gptj_serve.errors import StartupError

FOLDER = Path(sys.prefix, "lib", "netty")
ARCHIVE = "frontend/model-server.jar"


def java_options(temporary: Path, folder: Path = FOLDER) -> list[str]:
    """The options that tell Java where the library is.

    Args:
        temporary: Java's temporary folder.
        folder: Where `extract` has put the library, if it has done so.

    Raises:
        StartupError: There is no place that it could be mapped from.
    """
    if (folder / _name()).is_file():
        return [f"-Djava.library.path={folder}"]
    if os.statvfs(temporary).f_flag & os.ST_NOEXEC:
        raise StartupError(
            f"{temporary.parent} is mounted noexec, and the model server maps a library from there: "
            "mount it with exec, or set TMPDIR to another folder"
        )
    return []


def package() -> Path:
    """The folder of the model server's package.

    Raises:
        StartupError: It is not installed.
    """
    spec = importlib.util.find_spec("mms")
    if spec is None or spec.origin is None:
        raise StartupError("the package multi-model-server is not installed")
    return Path(spec.origin).parent


def extract(folder: Path = FOLDER) -> Path:
    """Write the library for this processor to a folder; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / _name()
    with zipfile.ZipFile(package() / ARCHIVE) as archive:
        library.write_bytes(archive.read(f"META-INF/native/{library.name}"))
    library.chmod(0o755)
    return library


def _name() -> str:
    # Netty names its files so
    processor = {"aarch64": "aarch_64"}.get(platform.machine(), platform.machine())
    return f"libnetty_transport_native_epoll_{processor}.so"


if __name__ == "__main__":
    print(extract())
