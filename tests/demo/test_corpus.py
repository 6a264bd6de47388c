"""Dictionaries are read by their index, splits are fixed, a missing package is named."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from gptj_serve.demo import corpus
from gptj_serve.demo.corpus import CorpusError, Document, dictd_entries, read_corpus, split_of, write_corpus


def write_dictionary(directory: Path, name: str, entries: list[tuple[str, bytes]]) -> None:
    """A dictd dictionary: the entries back to back, and where each one lies in base 64."""
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    offset, index = 0, ""
    for headword, content in entries:
        numbers = [digits[n // 64] + digits[n % 64] for n in (offset, len(content))]
        index += "\t".join([headword, *numbers]) + "\n"
        offset += len(content)
    (directory / f"{name}.index").write_text(index, "utf-8")
    (directory / f"{name}.dict.dz").write_bytes(gzip.compress(b"".join(content for _, content in entries)))


def test_entries_come_from_the_index_without_the_databases_own(tmp_path: Path) -> None:
    first, second = "É one\n\n    text\n".encode(), b"two " * 30
    entries = [
        ("00-database-short", b"The Title\n"),
        ("00databaseurl", b"u\n"),
        ("one", first),
        ("two", second),
    ]
    write_dictionary(tmp_path, "jargon", entries)
    with (tmp_path / "jargon.index").open("a") as index:
        index.write(
            (tmp_path / "jargon.index").read_text("utf-8").splitlines()[-1].replace("two", "again") + "\n"
        )
    assert dictd_entries("jargon", tmp_path) == [first.decode(), second.decode()]


@pytest.mark.parametrize("suffix", ["dict.dz", "index"])
def test_a_missing_dictionary_names_its_package(tmp_path: Path, suffix: str) -> None:
    write_dictionary(tmp_path, "devil", [("a", b"A, n.  B.")])
    (tmp_path / f"devil.{suffix}").unlink()
    with pytest.raises(CorpusError, match=rf"devil\.{suffix}.*install the Debian package dict-devil"):
        dictd_entries("devil", tmp_path)


def fake_bible(directory: Path, script: str) -> None:
    (directory / "bible").write_text(f"#!/bin/sh\n{script}\n")
    (directory / "bible").chmod(0o755)


def test_all_sources_become_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_bible(tmp_path, "echo 'Ge1:1 In the beginning.'; echo 'Ge1:2 And so on.'; echo 'Ge2:1 Thus.'")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    write_dictionary(
        tmp_path, "jargon", [("x", b"x\n n.\n\n    A letter.\n"), ("y", b"y\n n.\n\n    See {x}.\n")]
    )
    write_dictionary(tmp_path, "devil", [("z", b"Z, n.  Last.\n")])
    assert corpus.installed_documents(tmp_path) == [
        Document("kjv", "In the beginning. And so on."),
        Document("kjv", "Thus."),
        Document("jargon", "x: A letter."),
        Document("devil", "Z, n. Last."),
    ]


def test_a_bible_without_text_names_the_text_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_bible(tmp_path, "exit 1")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(CorpusError, match="install the Debian package bible-kjv-text"):
        corpus.installed_documents(tmp_path)


def test_a_missing_bible_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus.shutil, "which", lambda *_args, **_kwargs: None)
    with pytest.raises(CorpusError, match=r"install the Debian package bible-kjv$"):
        corpus.installed_documents()


def test_the_split_of_a_text_never_changes() -> None:
    texts = [f"document {number}" for number in range(4000)]
    counts = Counter(map(split_of, texts))
    assert 160 <= counts["heldout"] <= 240
    assert 50 <= counts["dev"] <= 110
    # their sha256 begin with 0ccc, 0ccd (5 % lies between them) and 19e6
    examples = ("document 15440", "document 10839", "document 0")
    assert [split_of(text) for text in examples] == ["heldout", "dev", "train"]


def test_a_written_corpus_reads_back_and_no_document_is_in_two_splits(tmp_path: Path) -> None:
    documents = [Document("devil", f"Entry {number}:\n\nnaïve “text”") for number in range(300)]
    counts = write_corpus([*documents, *documents], tmp_path / "new")
    splits = {split: read_corpus(tmp_path / "new", split) for split in corpus.SPLITS}
    assert {document for group in splits.values() for document in group} == set(documents)
    assert sum(map(len, splits.values())) == len(documents)
    assert {split: len(group) for split, group in splits.items()} == {s: counts[s]["devil"] for s in counts}
    assert all(split_of(document.text) == split for split, group in splits.items() for document in group)


def test_reading_a_corpus_that_is_not_there_tells_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"python -m gptj_serve\.demo\.corpus"):
        read_corpus(tmp_path, "train")


def test_the_command_writes_splits_and_package_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(corpus, "installed_documents", lambda: [Document("kjv", "document 0")])
    monkeypatch.setattr(corpus, "_package_versions", lambda: {"bible-kjv": "4.38"})
    assert corpus.main([str(tmp_path)]) == 0
    assert read_corpus(tmp_path, "train") == [Document("kjv", "document 0")]
    assert json.loads((tmp_path / "packages.json").read_text()) == {"bible-kjv": "4.38"}
    assert "train: 1 documents {'kjv': 1}" in capsys.readouterr().out


def test_the_command_fails_with_the_packages_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> list[Document]:
        raise CorpusError("install the Debian package dict-devil")

    monkeypatch.setattr(corpus, "installed_documents", fail)
    assert corpus.main([str(tmp_path)]) == 1
    assert capsys.readouterr().err == "install the Debian package dict-devil\n"
