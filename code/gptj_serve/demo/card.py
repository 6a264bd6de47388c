"""Fills the model card's measured part from the model's ``metrics.json``.

    python -m gptj_serve.demo.card

rewrites what stands between the two markers in ``README.md``; no figure there is typed by hand.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptj_serve.demo import MODEL_DIR
from gptj_serve.demo.evaluate import read_metrics

README = Path(__file__).parent / "README.md"
BEGIN = "<!-- measured: begin -->"
END = "<!-- measured: end -->"
_NAMES = {"gptj": "this model", "bigram": "bigram, interpolated Kneser-Ney", "unigram": "unigram, add-one"}


def render(metrics: dict[str, Any]) -> str:
    """The measured part of the card, in Markdown."""
    return "\n\n".join((_score_table(metrics), _run(metrics), _continuation_list(metrics)))


def filled_in(card: str, measured: str) -> str:
    """The card with the text between its markers replaced.

    Raises:
        ValueError: A marker is missing.
    """
    before, begin, rest = card.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the card needs the markers {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{measured}\n\n{END}{after}"


def _score_table(metrics: dict[str, Any]) -> str:
    rows = ["| model | perplexity per token | bits per character |", "| --- | --- | --- |"]
    for key, name in _NAMES.items():
        score = metrics["heldout_scores"][key]
        rows.append(f"| {name} | {score['perplexity']:.2f} | {score['bits_per_character']:.3f} |")
    return "\n".join(rows)


def _run(metrics: dict[str, Any]) -> str:
    splits, training = metrics["corpus"], metrics["training"]
    sizes = ", ".join(
        f"{size['documents']:,} documents with {size['tokens']:,} tokens {_SPLIT_USES[split]}"
        for split, size in splits.items()
    )
    packages = ", ".join(f"{name} {version}" for name, version in metrics["packages"].items())
    libraries = ", ".join(f"{name} {version}" for name, version in metrics["versions"].items())
    weights = (
        f"{metrics['num_parameters']:,} parameters, `model.safetensors` of {metrics['weights_bytes']:,} bytes"
    )
    steps = f"seed {training['options']['seed']}, {training['steps']} steps in {training['seconds']:.0f} s"
    return "\n".join(
        (
            f"- Size: {weights}.",
            f"- Text: {sizes}.",
            f"- Run: {steps} on {training['hardware']}; weights of step {training['best_step']}.",
            f"- Packages: {packages}.",
            f"- Libraries: {libraries}.",
        )
    )


_SPLIT_USES = {"train": "to learn from", "dev": "to choose the checkpoint", "heldout": "held out"}


def _continuation_list(metrics: dict[str, Any]) -> str:
    items = []
    for continuation in metrics["continuations"]:
        text = " ".join(continuation["text"].split())
        items.append(f"- **{continuation['prompt']}** {text}")
    return "What it writes, greedily (line ends removed):\n\n" + "\n".join(items)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gptj_serve.demo.card", description=__doc__.partition("\n")[0])
    parser.parse_args(argv)
    README.write_text(filled_in(README.read_text("utf-8"), render(read_metrics(MODEL_DIR))), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
