"""CTranslate2 as a peer; the model is converted once, into a folder that later measurements use again."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ctranslate2
from ctranslate2.converters import TransformersConverter

from gptj_serve.benchmark.facts.model import model_facts
from gptj_serve.benchmark.peers.peer import OnToken
from gptj_serve.models.model_dir import find_checkpoint

BYTES_PER_WEIGHT = {"float32": 4, "float16": 2, "int8": 1, "int8_float16": 1}


class CTranslate2:
    """Meets `Peer`.

    Args:
        model_dir: Model directory.
        work: Where converted models are kept.
        compute_type: CTranslate2's name of a type; None takes float16 on a GPU, float32 on a CPU.
    """

    def __init__(self, model_dir: Path, work: Path, compute_type: str | None) -> None:
        has_gpu = ctranslate2.get_cuda_device_count() > 0
        compute_type = compute_type or ("float16" if has_gpu else "float32")
        folder = _converted(model_dir, work, compute_type)
        self._generator = ctranslate2.Generator(
            str(folder), device="cuda" if has_gpu else "cpu", compute_type=compute_type
        )
        self._tokens: list[str] = json.loads((folder / "vocabulary.json").read_text())
        self.facts: dict[str, Any] = {
            "bytes_per_weight": BYTES_PER_WEIGHT[compute_type],
            "compute_type": compute_type,
        }

    def generate(self, prompt_ids: Sequence[int], num_tokens: int, on_token: OnToken | None) -> list[int]:
        """See `Peer`."""
        (result,) = self._generator.generate_batch(
            [[self._tokens[token_id] for token_id in prompt_ids]],
            max_length=num_tokens,
            min_length=num_tokens,
            include_prompt_in_result=False,
            sampling_topk=1,
            **({} if on_token is None else {"callback": lambda _: bool(on_token())}),
        )
        return list(result.sequences_ids[0])


class _Converter(TransformersConverter):  # type: ignore[misc]  # its package has no types
    """Also converts models whose embedding has more rows than their tokenizer has tokens."""

    def load_tokenizer(self, tokenizer_class: Any, model_name_or_path: str, **kwargs: Any) -> Any:
        """Load the tokenizer and name the rows without a token as GPT-J's published tokenizer does."""
        tokenizer = super().load_tokenizer(tokenizer_class, model_name_or_path, **kwargs)
        num_rows = find_checkpoint(Path(model_name_or_path)).architecture.vocab_size
        tokenizer.add_tokens([f"<|extratoken_{row}|>" for row in range(len(tokenizer), num_rows)])
        return tokenizer


def _converted(model_dir: Path, work: Path, compute_type: str) -> Path:
    """The folder with the model in CTranslate2's format, which is made if it is not there."""
    folder = work / f"ctranslate2-{model_facts(model_dir)['fingerprint']}-{compute_type}"
    if not folder.exists():
        new = folder.with_name(f"{folder.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        work.mkdir(parents=True, exist_ok=True)
        is_half = compute_type != "float32"
        converter = _Converter(str(model_dir), load_as_float16=is_half, low_cpu_mem_usage=True)
        converter.convert(str(new), quantization=compute_type)
        new.rename(folder)
    return folder
