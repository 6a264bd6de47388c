"""Turns the packages' formatted text into prose that a language model can learn from.

Pure functions, text in and text out. Paragraphs are separated by an empty line; only verse
keeps its line ends.
"""

import re
from collections.abc import Iterable
from itertools import pairwise

_VERSE = re.compile(r"(\d?[A-Za-z]+\d+):\d+ (.*)")
_PROSE_INDENT = " " * 4
_SIGNATURE_INDENT = 30
_FILL_COLUMNS = 78
_MIN_LETTER_SHARE = 0.6
_CROSS_REFERENCES = re.compile(
    r"\s*\b(?:See also|See|Compare|Contrast|Oppose|Cf\.):?\s+(?:also\s+)?"
    r"(?:\{[^}]*\}(?:,|;|\band\b|\bor\b|\s)*)+\.?(?=\s|$)"
)
# only at the very start and after a sense's number: elsewhere brackets are part of their sentence
_ETYMOLOGY = re.compile(r"(\A|^\d+\. )\[[^\]]*\]\s*", re.MULTILINE)
_TO_ASCII = str.maketrans(
    {
        "\u201c": '"',  # double quotation marks
        "\u201d": '"',
        "\u2018": "'",  # single quotation marks and the acute accent that stands for one
        "\u2019": "'",
        "\u00b4": "'",
        "\u2014": " -- ",  # em dash, as in the other dictionary
        "\u2212": "-",  # minus sign
        "\u00a0": " ",  # no-break space
        "\u00ad": None,  # soft hyphen
    }
)


def kjv_chapters(lines: Iterable[str]) -> list[str]:
    """One paragraph a chapter, without references.

    Args:
        lines: One verse each, as ``bible -f`` prints them: ``Ge1:1 In the beginning ...``.

    Raises:
        ValueError: A line is no verse.
    """
    chapters: dict[str, list[str]] = {}
    for line in lines:
        match = _VERSE.fullmatch(line.strip())
        if match is None:
            raise ValueError(f"not a verse: {line!r}")
        chapters.setdefault(match[1], []).append(match[2])
    return [_squeeze(" ".join(verses)) for verses in chapters.values()]


def jargon_entry(entry: str) -> str:
    """``headword: definition``, without pronunciation, part of speech, etymology and references.

    Preformatted blocks (programs, tables, drawings) are dropped: a paragraph of prose is one in
    which no line could have taken the next line's first word.

    Returns:
        The entry, or an empty string when no prose is left of it.
    """
    headword, _, rest = entry.strip().partition("\n")
    body = rest[match.start() :] if (match := re.search(rf"^{_PROSE_INDENT}", rest, re.M)) else ""
    blocks = [block for block in _blocks(body) if _is_filled(block)]
    paragraphs = [_jargon_prose(" ".join(line.strip() for line in block)) for block in blocks]
    text = "\n\n".join(prose for prose in paragraphs if prose and _is_mostly_letters(prose))
    text = _ETYMOLOGY.sub(r"\1", text)
    return f"{_squeeze(headword)}: {text}" if text else ""


def devil_entry(entry: str) -> str:
    """``HEADWORD, n. Definition`` with its verse, without emphasis marks and signatures."""
    paragraphs: list[str] = []
    for block in _blocks(entry):
        lines = [line for line in block if _indent(line) < _SIGNATURE_INDENT]
        if lines and all(_indent(line) for line in lines):
            paragraphs.append("\n".join(_devil_prose(line) for line in lines))
        else:
            paragraphs.extend(_devil_prose(" ".join(lines)) for lines in _split_at_indents(lines))
    return "\n\n".join(paragraphs)


def _blocks(text: str) -> list[list[str]]:
    blocks = re.split(r"\n\s*\n", text.strip("\n"))
    return [lines for block in blocks if (lines := [line for line in block.split("\n") if line.strip()])]


def _is_filled(lines: list[str]) -> bool:
    return all(len(line) + 1 + len(after.split()[0]) > _FILL_COLUMNS for line, after in pairwise(lines))


def _is_mostly_letters(text: str) -> bool:
    return sum(char.isalpha() or char == " " for char in text) >= _MIN_LETTER_SHARE * len(text)


def _jargon_prose(text: str) -> str:
    text = _CROSS_REFERENCES.sub("", text)
    text = re.sub(r"\{\s*([^{}]*?)\s*\}", r"\1", text)
    text = re.sub(r"([\u201c\u2018(]) +", r"\1", text)
    return re.sub(r" ([.,;:!?])(?=\s|$)", r"\1", _squeeze(text))


def _devil_prose(text: str) -> str:
    return _squeeze(re.sub(r"[_{}]", "", text))


def _split_at_indents(lines: list[str]) -> list[list[str]]:
    paragraphs: list[list[str]] = []
    for line in lines:
        if _indent(line) or not paragraphs:
            paragraphs.append([])
        paragraphs[-1].append(line)
    return paragraphs


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _squeeze(text: str) -> str:
    return " ".join(text.translate(_TO_ASCII).split())
