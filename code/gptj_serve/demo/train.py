"""Trains the demo model from scratch: its tokenizer, then a small GPT-J, on one device.

    python -m gptj_serve.demo.train --corpus DIR --out DIR [--device cuda --steps N --seed S ...]

writes a model directory with float16 weights and ``metrics.json``. The dev split alone decides which
checkpoint is kept; the held-out split is read once, after training.

Shape suffixes: B batch, H heads, T tokens, D head size, N stream length, V vocabulary.
"""

import argparse
import math
import platform
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import GPTJForCausalLM
from transformers.models.gptj.modeling_gptj import GPTJMLP, GPTJAttention

from gptj_serve.demo.corpus import SPLITS, CorpusError, Document, read_corpus
from gptj_serve.demo.evaluate import model_nats
from gptj_serve.demo.ngram import Ids
from gptj_serve.demo.options import TrainOptions
from gptj_serve.demo.save import MAX_WEIGHTS_BYTES, TrainingRecord, save_model, write_metrics
from gptj_serve.demo.tokenizer import END_OF_TEXT_ID, token_stream, train_tokenizer

_HEADER_BYTES = 8192  # safetensors' header for this many layers, rounded up
_MIN_LR_SHARE = 0.02
_LOG_EVERY_STEPS = 25


@dataclass(slots=True)
class Best:
    """The checkpoint with the lowest dev cost so far."""

    nats: float = math.inf
    step: int = 0
    weights: dict[str, torch.Tensor] = field(default_factory=dict)

    def offer(self, nats: float, step: int, model: nn.Module) -> None:
        """Keep a copy of the model if it is better."""
        if nats < self.nats:
            self.nats, self.step = nats, step
            self.weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def learning_rate_scale(step: int, progress: float, warmup_steps: int) -> float:
    """Linear warm-up, then half a cosine down to a fiftieth.

    Args:
        step: Steps done.
        progress: Share of the run that is over, 0..1.
        warmup_steps: Length of the warm-up.
    """
    cosine = _MIN_LR_SHARE + (1 - _MIN_LR_SHARE) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2
    return cosine * min(1.0, (step + 1) / max(warmup_steps, 1))


def use_fused_kernels(model: GPTJForCausalLM) -> None:
    """Let training use PyTorch's fused attention and GELU: the same function, without T x T tensors.

    Right only for causal attention over full rows with no padding and no cache, which is what training feeds.
    """
    for module in model.modules():
        if isinstance(module, GPTJAttention):
            module._attn = _fused_attention(module.attn_dropout)  # type: ignore[method-assign]
        elif isinstance(module, GPTJMLP):
            module.act = nn.GELU(approximate="tanh")


def _fused_attention(dropout: nn.Dropout) -> Callable[..., tuple[torch.Tensor, None]]:
    def attend(
        q_BHTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, _mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, None]:
        dropout_p = dropout.p if dropout.training else 0.0
        # rotary may have widened q and k; the fused kernels want one dtype
        q_BHTD, k_BHTD = q_BHTD.to(v_BHTD.dtype), k_BHTD.to(v_BHTD.dtype)
        out_BHTD = F.scaled_dot_product_attention(q_BHTD, k_BHTD, v_BHTD, dropout_p=dropout_p, is_causal=True)
        return out_BHTD, None

    return attend


class BatchSampler:
    """Draws rows of ``num_tokens`` ids from a stream, some of them from where a document starts."""

    def __init__(self, stream_N: Ids, num_tokens: int, options: TrainOptions) -> None:
        if len(stream_N) <= num_tokens:
            raise CorpusError(f"the train split has {len(stream_N)} tokens, a row needs {num_tokens}")
        self._num_offsets = len(stream_N) - num_tokens + 1
        starts = torch.from_numpy((stream_N == END_OF_TEXT_ID).nonzero()[0] + 1)
        self._starts = starts[starts < self._num_offsets]
        self._ids_N = torch.from_numpy(stream_N).to(options.device)
        self._columns_T = torch.arange(num_tokens, device=options.device)
        self._num_rows = options.batch_size
        self._num_start_rows = round(options.batch_size * options.document_start_share)
        self._generator = torch.Generator()  # on the CPU: one order of the text everywhere
        self._generator.manual_seed(options.seed)

    def __call__(self) -> torch.Tensor:
        """Token ids, int64 [batch, num_tokens], on the device."""
        starts = self._starts[self._random(len(self._starts), self._num_start_rows)]
        anywhere = self._random(self._num_offsets, self._num_rows - self._num_start_rows)
        offsets_B = torch.cat([starts, anywhere]).to(self._ids_N.device)
        return self._ids_N[offsets_B[:, None] + self._columns_T]

    def _random(self, high: int, count: int) -> torch.Tensor:
        return torch.randint(high, (count,), generator=self._generator)


def make_optimizer(model: nn.Module, options: TrainOptions) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves biases and LayerNorms alone."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=options.learning_rate, betas=(0.9, 0.95), fused=options.device.startswith("cuda")
    )


class Trainer:
    """One training run."""

    def __init__(self, model: GPTJForCausalLM, train_N: Ids, dev_M: Ids, options: TrainOptions) -> None:
        self._model = model
        self._options = options
        self._dev_M = dev_M
        self._sample = BatchSampler(train_N, options.n_positions + 1, options)
        self._optimizer = make_optimizer(model, options)
        self._device_type = torch.device(options.device).type

    def run(self) -> tuple[Best, int, float]:
        """Train until the steps or the seconds are used up.

        Returns:
            The best checkpoint, steps done, seconds taken.

        Raises:
            FloatingPointError: The loss stopped being a number before any checkpoint.
        """
        options, best = self._options, Best()
        started_s = time.monotonic()
        step, progress = 0, 0.0
        while progress < 1.0:
            loss = self._step(
                options.learning_rate * learning_rate_scale(step, progress, options.warmup_steps)
            )
            step += 1
            elapsed_s = time.monotonic() - started_s
            progress = max(step / options.steps, elapsed_s / options.max_seconds)
            if step % _LOG_EVERY_STEPS == 0 or progress >= 1.0:
                _log(f"step {step} train loss {loss.item():.4f} {elapsed_s:.0f} s")  # also waits for the GPU
            if step % options.eval_every == 0 or progress >= 1.0:
                dev_nats = self._dev_nats()
                best.offer(dev_nats, step, self._model)
                _log(f"step {step} dev perplexity {math.exp(dev_nats):.3f} best {math.exp(best.nats):.3f}")
                if not math.isfinite(dev_nats):
                    break
        if not best.weights:
            raise FloatingPointError("training diverged before the first checkpoint: lower --learning-rate")
        return best, step, time.monotonic() - started_s

    def _step(self, learning_rate: float) -> torch.Tensor:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        ids_BT = self._sample()
        with self._autocast():
            logits_BTV = self._model(input_ids=ids_BT[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits_BTV.flatten(0, 1).float(), ids_BT[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _dev_nats(self) -> float:
        self._model.eval()  # type: ignore[no-untyped-call]
        with self._autocast():
            nats = float(model_nats(self._model, self._dev_M).mean())
        self._model.train()
        return nats

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self._device_type, torch.bfloat16)


def train(corpus_dir: Path, out_dir: Path, options: TrainOptions) -> None:
    """Make the model directory from the corpus.

    Raises:
        CorpusError: A split is missing or too short.
        ValueError: The model would be larger than `MAX_WEIGHTS_BYTES`.
    """
    documents = {split: read_corpus(corpus_dir, split) for split in SPLITS}
    torch.manual_seed(options.seed)
    tokenizer = train_tokenizer(_texts(documents["train"]), options.vocab_size)
    config = options.model_config(tokenizer.get_vocab_size(), dropout=options.dropout)
    model = GPTJForCausalLM(config)  # type: ignore[no-untyped-call]
    _check_size(model)
    use_fused_kernels(model)
    nn.Module.to(model, options.device).train()
    streams = {split: token_stream(tokenizer, _texts(documents[split])) for split in ("train", "dev")}
    _log(f"{model.num_parameters()} parameters, {len(streams['train'])} train tokens")
    # cuDNN's attention is left out: its dropout has had defects in some versions
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        best, steps, seconds = Trainer(model, streams["train"], streams["dev"], options).run()

    model_config = options.model_config(config.vocab_size, dropout=0.0)
    save_model(model_config, best.weights, tokenizer, out_dir)
    record = TrainingRecord(
        options, steps, best.step, math.exp(best.nats), seconds, _hardware(options.device)
    )
    write_metrics(out_dir, corpus_dir, documents, record)
    _log(f"saved to {out_dir}")


def _texts(documents: Sequence[Document]) -> list[str]:
    return [document.text for document in documents]


def _check_size(model: GPTJForCausalLM) -> None:
    num_bytes = 2 * model.num_parameters() + _HEADER_BYTES
    if num_bytes > MAX_WEIGHTS_BYTES:
        raise ValueError(f"the weights would take {num_bytes} bytes, more than {MAX_WEIGHTS_BYTES}")


def _hardware(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else f"CPU ({platform.machine()})"


def _log(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """``corpus``, ``out`` and one argument for every field of `TrainOptions`."""
    parser = argparse.ArgumentParser(prog="gptj_serve.demo.train", description=__doc__.partition("\n")[0])
    parser.add_argument("--corpus", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    for option in fields(TrainOptions):
        flag = "--" + option.name.replace("_", "-")
        parser.add_argument(flag, type=type(option.default), default=option.default)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    options = TrainOptions(**{option.name: getattr(args, option.name) for option in fields(TrainOptions)})
    try:
        train(args.corpus, args.out, options)
    except (CorpusError, ValueError, FloatingPointError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
