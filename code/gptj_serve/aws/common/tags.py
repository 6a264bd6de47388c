"""Tags that a user gives to the resources that are made."""

import argparse
from collections.abc import Mapping


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--tag KEY=VALUE``, which may be repeated; `to_dict` takes the parsed value."""
    what = "tag for what is made; may be repeated"
    parser.add_argument("--tag", action="append", default=[], type=_pair, metavar="KEY=VALUE", help=what)


def to_dict(pairs: list[tuple[str, str]], **ours: str) -> dict[str, str]:
    """The user's tags and ours; no tag of ours can be overwritten."""
    return {**dict(pairs), **ours}


def to_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Tags in the form that requests have."""
    return [{"Key": key, "Value": value} for key, value in sorted(tags.items())]


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not 1 <= len(key) <= 128 or len(value) > 256:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE (1 to 128 and up to 256 characters)")
    if key.startswith(("aws:", "gptj-serve:")):
        raise argparse.ArgumentTypeError(f"{key!r}: keys that begin with 'aws:' or 'gptj-serve:' are taken")
    return key, value
