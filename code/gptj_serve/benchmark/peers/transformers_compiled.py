"""Transformers with a static cache and a compiled decode step (`torch.compile`, mode "reduce-overhead")."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GPTJForCausalLM, StaticCache

from gptj_serve.benchmark.peers.peer import OnToken


class TransformersCompiled:
    """Meets `Peer`.

    Args:
        model_dir: Model directory.
        max_context: Length of the cache; each step attends to all of it.
    """

    def __init__(self, model_dir: Path, max_context: int) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.float16 if self._device.type == "cuda" else torch.float32
        model = GPTJForCausalLM.from_pretrained(model_dir, dtype=dtype, local_files_only=True)
        self._model = model.to(self._device).eval()  # type: ignore[arg-type]  # its decorator hides that this is a method
        self._model.requires_grad_(False)
        self._cache = StaticCache(config=self._model.config, max_cache_len=max_context)
        self._decode = torch.compile(self._step, mode="reduce-overhead", fullgraph=True)
        self.facts: dict[str, Any] = {"bytes_per_weight": dtype.itemsize, "max_context": max_context}

    @torch.inference_mode()
    def generate(self, prompt_ids: Sequence[int], num_tokens: int, on_token: OnToken | None) -> list[int]:
        """See `Peer`."""
        self._cache.reset()  # type: ignore[no-untyped-call]
        token_11 = self._step(torch.tensor([prompt_ids], device=self._device))
        chosen = [token_11.clone()]
        for _ in range(num_tokens - 1):
            if on_token is not None:
                chosen[-1].item()  # a client would not see it before
                on_token()
            token_11 = self._decode(token_11)
            chosen.append(token_11.clone())  # the graph writes the next token to the same place
            token_11 = chosen[-1]
        found = [int(token_11) for token_11 in torch.cat(chosen).flatten().tolist()]
        if on_token is not None:
            on_token()
        return found

    def _step(self, ids_1T: torch.Tensor) -> torch.Tensor:
        """The next token, shaped 11. The cache keeps the position."""
        output = self._model(ids_1T, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        logits_11V: torch.Tensor = output.logits
        return logits_11V[:, -1].argmax(-1, keepdim=True)
