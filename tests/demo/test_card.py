"""The card's measured part is made from the metrics alone."""

import pytest

from gptj_serve.demo.card import BEGIN, END, filled_in, render

METRICS = {
    "heldout_scores": {
        "gptj": {"perplexity": 12.3456, "bits_per_character": 1.09876},
        "bigram": {"perplexity": 69.5, "bits_per_character": 1.8333},
        "unigram": {"perplexity": 513.4, "bits_per_character": 2.6975},
    },
    "corpus": {
        "train": {"documents": 4108, "tokens": 1568869},
        "dev": {"documents": 90, "tokens": 34031},
        "heldout": {"documents": 206, "tokens": 83866},
    },
    "packages": {"dict-devil": "1.0-13.1"},
    "num_parameters": 4992256,
    "weights_bytes": 9989992,
    "training": {
        "options": {"seed": 7},
        "steps": 1600,
        "best_step": 1500,
        "seconds": 61.7,
        "hardware": "a GPU",
    },
    "versions": {"torch": "2.11.0"},
    "continuations": [{"prompt": "HOPE, n.", "token_ids": [1], "text": " Desire\nand expectation."}],
}


def test_every_figure_is_shown() -> None:
    text = render(METRICS)
    assert "| this model | 12.35 | 1.099 |" in text
    assert "| bigram, interpolated Kneser-Ney | 69.50 | 1.833 |" in text
    assert "| unigram, add-one | 513.40 | 2.697 |" in text
    assert "4,992,256 parameters, `model.safetensors` of 9,989,992 bytes" in text
    assert "206 documents with 83,866 tokens held out" in text
    assert "seed 7, 1600 steps in 62 s on a GPU; weights of step 1500" in text
    assert "dict-devil 1.0-13.1" in text
    assert "torch 2.11.0" in text
    assert "- **HOPE, n.** Desire and expectation." in text


def test_only_the_part_between_the_markers_changes() -> None:
    card = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    once = filled_in(card, "new")
    assert once == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    assert filled_in(once, "new") == once


@pytest.mark.parametrize("card", ["no markers", f"{END} {BEGIN}", f"only {BEGIN}"])
def test_a_card_without_markers_is_an_error(card: str) -> None:
    with pytest.raises(ValueError, match="needs the markers"):
        filled_in(card, "new")
