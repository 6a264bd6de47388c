"""Measures a demo model on the held-out documents, beside n-gram models on the same tokens.

    python -m gptj_serve.demo.evaluate --corpus DIR [--model DIR]

prints the figures as JSON and fails when they differ from the model's ``metrics.json``.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import nn
from transformers import GPTJForCausalLM

from gptj_serve.demo import MODEL_DIR
from gptj_serve.demo.corpus import CorpusError, Document, read_corpus
from gptj_serve.demo.ngram import Ids, Nats, bigram_nats, unigram_nats
from gptj_serve.demo.tokenizer import END_OF_TEXT_ID, load_tokenizer, token_stream

METRICS_FILE = "metrics.json"
NUM_CONTINUATION_TOKENS = 60
PROMPTS = (
    "In the beginning",
    "And he said unto them,",
    "The king of Israel",
    "The LORD is my",
    "A hacker is",
    "programming: The art of",
    "HOPE, n.",
    "LOVE, n.",
)
_RELATIVE_TOLERANCE = 2e-3  # other devices round differently


@dataclass(frozen=True, slots=True)
class Score:
    """How well a model predicts a text.

    Attributes:
        perplexity: Per token, >= 1.
        bits_per_character: Cost of all tokens, end marks included, over the text's characters.
    """

    perplexity: float
    bits_per_character: float


def model_nats(model: GPTJForCausalLM, stream_N: Ids) -> Nats:
    """Cost of each token but the first under a model.

    Windows overlap by half, so that every token past the first window has at least half the
    model's context before it. The model is left in the mode (train or eval) it came in.

    Returns:
        ``-ln p`` of ``stream_N[1:]``, computed in the model's dtype (or the active autocast's).
    """
    context = model.config.n_positions
    ids_N = torch.from_numpy(stream_N).to(model.device)
    costs: list[torch.Tensor] = []
    scored = 1
    while scored < len(stream_N):
        end = min(scored + (context if scored == 1 else context // 2), len(stream_N))
        start = max(0, end - 1 - context)
        with torch.no_grad():
            logits_TV = model(input_ids=ids_N[None, start : end - 1], use_cache=False).logits[0]
        num_new = end - scored
        costs.append(F.cross_entropy(logits_TV[-num_new:].float(), ids_N[scored:end], reduction="none"))
        scored = end
    return torch.cat(costs).double().cpu().numpy()


def score(nats: Nats, num_characters: int) -> Score:
    """Perplexity and bits per character of per-token costs."""
    return Score(math.exp(float(nats.mean())), float(nats.sum()) / math.log(2) / num_characters)


def heldout_scores(
    model: GPTJForCausalLM, tokenizer: Tokenizer, train: Sequence[Document], heldout: Sequence[Document]
) -> dict[str, Score]:
    """Scores of the model ("gptj"), a bigram and a unigram on the very same tokens."""
    num_characters = sum(len(document.text) for document in heldout)
    train_N = token_stream(tokenizer, (document.text for document in train))
    heldout_M = token_stream(tokenizer, (document.text for document in heldout))
    vocab_size = model.config.vocab_size
    nats = {
        "gptj": model_nats(model, heldout_M),
        "bigram": bigram_nats(train_N, heldout_M, vocab_size),
        "unigram": unigram_nats(train_N, heldout_M, vocab_size),
    }
    return {name: score(cost, num_characters) for name, cost in nats.items()}


def greedy_ids(model: GPTJForCausalLM, prompt_ids: Sequence[int], num_tokens: int) -> list[int]:
    """The most likely next tokens, one after the other; ends early after the end mark or a full context."""
    ids = list(prompt_ids)
    cache = None
    step_ids = ids
    while len(ids) < min(len(prompt_ids) + num_tokens, model.config.n_positions):
        with torch.no_grad():
            output = model(
                input_ids=torch.tensor([step_ids], device=model.device), past_key_values=cache, use_cache=True
            )
        cache = output.past_key_values
        step_ids = [int(output.logits[0, -1].argmax())]
        ids += step_ids
        if step_ids == [END_OF_TEXT_ID]:
            break
    return ids[len(prompt_ids) :]


def continuations(model: GPTJForCausalLM, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """What the model makes of `PROMPTS`: prompt, new token ids, their text."""
    result = []
    for prompt in PROMPTS:
        ids = greedy_ids(model, tokenizer.encode(prompt).ids, NUM_CONTINUATION_TOKENS)
        text = tokenizer.decode(ids, skip_special_tokens=True)
        result.append({"prompt": prompt, "token_ids": ids, "text": text})
    return result


def load_model(model_dir: Path, device: str = "cpu") -> GPTJForCausalLM:
    """The saved weights in float32, ready to evaluate."""
    model: GPTJForCausalLM = GPTJForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    nn.Module.to(model, device).train(False)
    return model


def read_metrics(model_dir: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((model_dir / METRICS_FILE).read_text("utf-8"))
    return metrics


def mismatches(measured: dict[str, Score], recorded: dict[str, dict[str, float]]) -> list[str]:
    """Every figure that is not what was recorded, in words."""
    return [
        f"{name} {key}: measured {value:.4f}, recorded {recorded[name][key]:.4f}"
        for name, result in measured.items()
        for key, value in asdict(result).items()
        if not np.isclose(value, recorded[name][key], rtol=_RELATIVE_TOLERANCE, atol=0)
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gptj_serve.demo.evaluate", description=__doc__.partition("\n")[0])
    parser.add_argument("--corpus", type=Path, required=True, metavar="DIR")
    parser.add_argument("--model", type=Path, default=MODEL_DIR, metavar="DIR")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    try:
        train, heldout = (read_corpus(args.corpus, split) for split in ("train", "heldout"))
    except CorpusError as error:
        print(error, file=sys.stderr)
        return 1
    model = load_model(args.model, args.device)
    scores = heldout_scores(model, load_tokenizer(args.model), train, heldout)
    print(json.dumps({name: asdict(result) for name, result in scores.items()}, indent=2))
    problems = mismatches(scores, read_metrics(args.model)["heldout_scores"])
    print("\n".join(problems) or "equal to metrics.json", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
