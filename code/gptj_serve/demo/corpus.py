"""Makes the demo model's corpus from three Debian packages of public-domain text.

    python -m gptj_serve.demo.corpus OUT_DIR

writes ``train.jsonl``, ``dev.jsonl``, ``heldout.jsonl`` (one ``{"source", "text"}`` a line) and
``packages.json`` (package versions). Which split a document goes to depends on its text alone.
"""

import argparse
import gzip
import hashlib
import json
import shutil
import string
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from gptj_serve.demo import cleaning

SPLITS = ("train", "dev", "heldout")
PACKAGES = ("bible-kjv", "bible-kjv-text", "dict-jargon", "dict-devil")
DICTD_DIR = Path("/usr/share/dictd")

_BASE64_DIGITS = {
    digit: value
    for value, digit in enumerate(string.ascii_uppercase + string.ascii_lowercase + "0123456789+/")
}


class CorpusError(Exception):
    """The corpus cannot be made or read; the message names what is missing."""


@dataclass(frozen=True, slots=True)
class Document:
    """One chapter or entry.

    Attributes:
        source: "kjv", "jargon" or "devil".
        text: Clean prose, never empty.
    """

    source: str
    text: str


def split_of(text: str) -> str:
    """Which of `SPLITS` a document belongs to: 5 % held out, 2 % dev, the rest train."""
    share = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
    if share < 0.05:
        return "heldout"
    return "dev" if share < 0.07 else "train"


def read_corpus(corpus_dir: Path, split: str) -> list[Document]:
    """Read one split that `write_corpus` wrote.

    Raises:
        CorpusError: The file is not there.
    """
    path = corpus_dir / f"{split}.jsonl"
    if not path.is_file():
        raise CorpusError(f"{path} is missing: make it with python -m gptj_serve.demo.corpus {corpus_dir}")
    return [Document(**json.loads(line)) for line in path.read_text("utf-8").splitlines()]


def write_corpus(documents: Iterable[Document], out_dir: Path) -> dict[str, Counter[str]]:
    """Write the splits and return how many documents of each source every split got."""
    out_dir.mkdir(parents=True, exist_ok=True)
    lines: dict[str, list[str]] = {split: [] for split in SPLITS}
    counts: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    for document in dict.fromkeys(documents):  # an entry under two headwords must not be in two splits
        split = split_of(document.text)
        lines[split].append(json.dumps(asdict(document)) + "\n")
        counts[split][document.source] += 1
    for split in SPLITS:
        (out_dir / f"{split}.jsonl").write_text("".join(lines[split]), "utf-8")
    return counts


def installed_documents(dictd_dir: Path = DICTD_DIR) -> list[Document]:
    """Every document of the installed packages, in the packages' order.

    Raises:
        CorpusError: A package is not installed.
    """
    texts = {
        "kjv": _kjv_chapters(),
        "jargon": map(cleaning.jargon_entry, dictd_entries("jargon", dictd_dir)),
        "devil": map(cleaning.devil_entry, dictd_entries("devil", dictd_dir)),
    }
    return [Document(source, text) for source, group in texts.items() for text in group if text]


def dictd_entries(name: str, dictd_dir: Path) -> list[str]:
    """The entries of a dictd dictionary, without the ones that describe the database itself.

    Args:
        name: "jargon" or "devil".
        dictd_dir: Where the package ``dict-<name>`` keeps ``<name>.dict.dz`` and ``<name>.index``
            (lines of headword, offset and length, tab-separated, the numbers in base 64).

    Raises:
        CorpusError: The package is not installed.
    """
    dict_path, index_path = dictd_dir / f"{name}.dict.dz", dictd_dir / f"{name}.index"
    for path in (dict_path, index_path):
        if not path.is_file():
            raise _missing(f"dict-{name}", path)
    content = gzip.decompress(dict_path.read_bytes())  # dictzip is gzip with an index in the header
    extents = set()
    for line in index_path.read_text("utf-8").splitlines():
        headword, offset, length = line.split("\t")[:3]
        if not headword.startswith(("00-database", "00database")):
            extents.add((_base64_number(offset), _base64_number(length)))
    return [content[offset : offset + length].decode() for offset, length in sorted(extents)]


def _base64_number(digits: str) -> int:
    number = 0
    for digit in digits:
        number = number * 64 + _BASE64_DIGITS[digit]
    return number


def _kjv_chapters() -> list[str]:
    command = shutil.which("bible") or shutil.which("bible", path="/usr/bin:/usr/games")
    if command is None:
        raise _missing("bible-kjv", Path("/usr/bin/bible"))
    result = subprocess.run(
        [command, "-f", "gen1:1-rev22:21"], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    lines = [line for line in result.stdout.splitlines() if line.strip()]
    if result.returncode != 0 or not lines:
        raise _missing("bible-kjv-text", Path("/usr/lib/bible.data"))
    return cleaning.kjv_chapters(lines)


def _missing(package: str, path: Path) -> CorpusError:
    return CorpusError(f"{path} is missing or unreadable: install the Debian package {package}")


def _package_versions() -> dict[str, str]:
    query = ["dpkg-query", "-W", "-f", "${Package} ${Version}\n", *PACKAGES]
    result = subprocess.run(query, capture_output=True, text=True, check=True)
    return dict(line.split() for line in result.stdout.splitlines())


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gptj_serve.demo.corpus", description=__doc__.partition("\n")[0])
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR")
    out_dir: Path = parser.parse_args(argv).out_dir
    try:
        counts = write_corpus(installed_documents(), out_dir)
    except CorpusError as error:
        print(error, file=sys.stderr)
        return 1
    (out_dir / "packages.json").write_text(json.dumps(_package_versions(), indent=2) + "\n", "utf-8")
    for split, count in counts.items():
        num_bytes = (out_dir / f"{split}.jsonl").stat().st_size
        print(f"{split}: {count.total()} documents {dict(count)}, {num_bytes} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
