"""The demo model's tokenizer: byte-level BPE in GPT-2's manner, trained on the train split alone."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from gptj_serve.demo.ngram import Ids

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn a vocabulary of at most ``vocab_size`` tokens: the end mark, 256 bytes, merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, model_dir: Path, max_length: int) -> None:
    """Write the tokenizer's files in the layout that Transformers reads.

    Args:
        tokenizer: What `train_tokenizer` made.
        model_dir: An existing directory.
        max_length: Tokens the model takes at most.
    """
    tokenizer.save(str(model_dir / "tokenizer.json"))
    special = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        **special,
    }
    for name, content in (("special_tokens_map.json", special), ("tokenizer_config.json", config)):
        (model_dir / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def load_tokenizer(model_dir: Path) -> Tokenizer:
    return Tokenizer.from_file(str(model_dir / "tokenizer.json"))


def token_stream(tokenizer: Tokenizer, texts: Iterable[str]) -> Ids:
    """All texts in one row of ids, with an end mark before, between and after them."""
    ids = [END_OF_TEXT_ID]
    for encoding in tokenizer.encode_batch(list(texts)):
        ids.extend(encoding.ids)
        ids.append(END_OF_TEXT_ID)
    return np.array(ids, dtype=np.int64)
