"""Lets Transformers make a tokenizer from a model directory's files.

Usage: python -m gptj_serve.serving.tokenizing.convert --model-dir DIR --directory DIR

This is a process of its own: importing Transformers takes seconds, which pass while the weights load, and the
fronts stay small. Exit codes: 0 the tokenizer was written, 1 the reason was.
"""

import argparse
import gc
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

from gptj_serve import logs, run_dir
from gptj_serve.errors import StartupError
from gptj_serve.logs import log_event
from gptj_serve.serving.text import Tokenizer
from gptj_serve.serving.tokenizing import PreparedTokenizer
from gptj_serve.settings import Settings

logger = logging.getLogger(__name__)

_CLEAN_UP = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"


def convert(model_dir: Path) -> PreparedTokenizer:
    """The tokenizer that ``AutoTokenizer`` makes from a model directory's files.

    Raises:
        StartupError: It makes none, or one that cannot be used here.
    """
    loaded = _load(model_dir)
    if loaded.clean_up_tokenization_spaces and getattr(loaded, _CLEAN_UP, False):
        raise StartupError(f"{model_dir}: tokenizer_config.json: {_CLEAN_UP}=true is not supported")
    prepared = PreparedTokenizer(
        _definition(loaded.backend_tokenizer),
        eos_token_id=loaded.eos_token_id,
        splits_special_tokens=loaded.split_special_tokens,
    )
    try:
        Tokenizer.of(prepared)
    except StartupError as error:
        raise StartupError(f"{model_dir}: {error}") from None
    return prepared


def _load(model_dir: Path) -> Any:
    from transformers import AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        loaded = AutoTokenizer.from_pretrained(model_dir, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # its many ways of reading raise many kinds of errors
        files = ", ".join(sorted(path.name for path in model_dir.glob("*") if _is_tokenizers(path.name)))
        said = " ".join(str(error).split())
        raise StartupError(
            f"{model_dir}: Transformers makes no tokenizer of {files}: {type(error).__name__}: {said}"
        ) from None
    if not getattr(loaded, "is_fast", False):
        raise StartupError(f"{model_dir}: the tokenizer is a {type(loaded).__name__}, no byte-level BPE one")
    return loaded


def _definition(backend: Any) -> str:
    """The ``tokenizer.json``, with flags for the tokens that the library itself treats as special.

    The library goes by their text. If files contradict each other, the last one's flag is written.
    """
    saved = json.loads(backend.to_str())
    for token in saved["added_tokens"]:
        shown, kept = (backend.decode([token["id"]], skip_special_tokens=skip) for skip in (False, True))
        token["special"] = bool(shown and not kept)
    return json.dumps(saved, ensure_ascii=False)


def _is_tokenizers(name: str) -> bool:
    return name in ("vocab.json", "merges.txt") or ("token" in name and name.endswith((".json", ".model")))


def main() -> int:
    """Write the tokenizer, or the reason why there is none; returns the exit code."""
    parser = argparse.ArgumentParser(prog="gptj_serve.serving.tokenizing.convert")
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    args = parser.parse_args()
    started_s = time.monotonic()
    gc.disable()  # nothing here lives long, and it would look again and again at what Transformers imports
    os.environ["HF_HUB_OFFLINE"] = "1"  # everything that is needed is in the directory
    try:
        logs.configure("tokenizer", Settings.from_env(os.environ).log_level)
        convert(args.model_dir).save(args.directory)
    except StartupError as error:
        args.directory.mkdir(exist_ok=True)
        run_dir.tell_start_failure(args.directory, str(error))
        return 1
    seconds = round(time.monotonic() - started_s, 3)
    log_event(logger, "tokenizer_converted", "Transformers has read the tokenizer's files", seconds=seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
