"""Times the fused engine's forward passes, on random weights of GPT-J-6B's shape: no scheduler, no HTTP.

Usage: scripts/benchmark decode --out F [--contexts 50,500] [--batches 1,2] [--prompts 50]

Milliseconds are medians over CUDA events around many replays of one CUDA graph. ``share`` is how much of the
limit is reached. At the limit, the weights (without the embedding) and the context's cache are read once, at
the speed at which this GPU sums 6.6 GB. ``prefill_ms`` is a prompt as the engine runs it, from its ids on the
host to its first token; ``prefill_parts_ms`` are that prompt's matrix products and attention alone, in a CUDA
graph.
"""

import argparse
import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gptj_serve.benchmark.facts.bandwidth import gpu_seconds, read_bytes_per_s
from gptj_serve.benchmark.facts.surroundings import surroundings
from gptj_serve.engine.fused.build import make_state
from gptj_serve.engine.fused.graphs import PrefillGraphs
from gptj_serve.engine.fused.kernels.cuda import CudaKernels
from gptj_serve.engine.fused.kernels.library import find_library
from gptj_serve.engine.fused.kernels.prompt_attention import FLASH
from gptj_serve.engine.fused.kernels.protocol import BLOCK_SIZE, Tokens
from gptj_serve.engine.fused.memory_needs import MAX_PREFILL, PREFILL_CHUNK
from gptj_serve.engine.fused.model import FusedModel
from gptj_serve.engine.fused.schedule.plan import Row, RunnerLimits
from gptj_serve.engine.fused.step_inputs import StepInputs
from gptj_serve.engine.fused.weights.pack import PackedWeights, empty_weights
from gptj_serve.models.families import read_architecture
from gptj_serve.request import GenerationRequest, SamplingParams

GPT_J_6B = read_architecture({"model_type": "gptj"}, Path("GPT-J-6B"))
MAX_CONTEXT = 2048
MAX_BATCH = 64
BATCH_CONTEXT = 250
STEPS = 24
REPEATS = 5


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/benchmark decode", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--contexts", type=numbers, default=[50, 500, 1000, 2000], help="at batch 1")
    parser.add_argument(
        "--batches", type=numbers, default=[1, 2, 4, 8, 12, 16, 24, 32, 64], help="at 250 tokens"
    )
    parser.add_argument("--prompts", type=numbers, default=[50, 256, 500, 1000, 2000], help="prompt tokens")
    parser.add_argument("--profile", action="store_true", help="also time each kernel")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args(arguments)
    with torch.inference_mode():
        report = measure(args)
    args.out.write_text(json.dumps(report, indent=1))
    print(json.dumps(report, indent=1))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure everything that the arguments ask for; returns the figures."""
    # the buffer for this needs the memory that the model and its cache take afterwards
    read_speed = read_bytes_per_s()
    torch.cuda.empty_cache()
    bench = Bench(torch.device("cuda", 0))
    report: dict[str, Any] = {
        **surroundings(),
        "read_tb_per_s": round(read_speed / 1e12, 3),
        "batch_1": {context: bench.decode(1, context, read_speed) for context in args.contexts},
        "context_250": {size: bench.decode(size, BATCH_CONTEXT, read_speed) for size in args.batches},
        "context_250_cublas": {
            size: bench.decode(size, BATCH_CONTEXT, read_speed, through_cublas=True)
            for size in args.batches
            if size <= 16
        },
        "prefill_ms": bench.prefill(args.prompts),
        "prefill_parts_ms": {num: bench.prefill_parts(num) for num in args.prompts},
        "gpu_memory_gib": bench.memory_gib(),
    }
    if args.profile:
        report["kernels"] = {
            size: bench.profile(size, 1000 if size == 1 else BATCH_CONTEXT) for size in (1, 8, 16, 64)
        }
    return report


class Bench:
    """The model with random weights, and ways to time it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        major, minor = torch.cuda.get_device_capability(device)
        library = find_library(os.environ, [f"{major}.{minor}"])
        self.state = make_state(GPT_J_6B, _weights(device), MAX_BATCH, MAX_CONTEXT)
        for part in (self.state.cache.keys_LNHSE, self.state.cache.values_LNHSE):
            for layer_NHSE in part:
                layer_NHSE.normal_()
        self.kernels = CudaKernels(library, self.state)
        self._model = FusedModel(self.state, self.kernels)

    def decode(
        self, size: int, context: int, read_speed: float, *, through_cublas: bool = False
    ) -> dict[str, float]:
        """Time a step that decodes one token for each of ``size`` sequences after ``context`` tokens."""
        seconds = _time_graph(self._graph(size, context, through_cublas))
        share = self._bytes(size, context) / read_speed / seconds
        return {
            "ms": round(seconds * 1e3, 4),
            "tokens_per_s": round(size / seconds, 1),
            "share": round(share, 4),
        }

    def prefill(self, lengths: Sequence[int]) -> dict[int, float]:
        """Prompts of these lengths, as the engine runs them, in ms."""
        history_SC = self.state.history_SC
        limits = RunnerLimits(
            max_batch_size=MAX_BATCH,
            max_context=MAX_CONTEXT,
            vocab_size=GPT_J_6B.vocab_size,
            block_size=BLOCK_SIZE,
            num_blocks=self.state.cache.keys_LNHSE.shape[1],
            prefill_chunk=PREFILL_CHUNK,
            max_prefill=MAX_PREFILL,
        )
        inputs = StepInputs(limits, history_SC.shape[1])
        can_capture = self.kernels.can_attend_prompts
        graphs = PrefillGraphs(self._model, inputs, limits, can_capture=can_capture, device=self._device)
        graphs.capture()
        blocks = range(MAX_CONTEXT // BLOCK_SIZE)
        found = {}
        for length in lengths:
            prompt = tuple(number % limits.vocab_size for number in range(length))
            request = GenerationRequest("benchmark", prompt, SamplingParams(1))
            row = Row(0, 0, request, 0, blocks, 0, prompt, samples=True)
            found[length] = round(gpu_seconds(partial(graphs.prefill, [row], []), REPEATS) * 1e3, 3)
        return found

    def prefill_parts(self, num_tokens: int) -> float:
        """The products and attention of a prompt in a CUDA graph, nothing between them, in ms."""
        weights, scratch, attention_width = self.state.weights, self.state.scratch, GPT_J_6B.attention_width
        normed_TD, projected_TP, mixed_TK, added_TD = (
            array[:num_tokens].normal_()
            for array in (scratch.normed_TD, scratch.projected_TP, scratch.mixed_TK, scratch.added_TD)
        )
        heads_T3HE = projected_TP[:, : 3 * attention_width].view(num_tokens, 3, -1, GPT_J_6B.head_dim)
        inputs = heads_T3HE[None].unbind(2)

        def parts() -> None:
            for layer in weights.layers:
                project, add = layer.products
                project.matrix.multiply(normed_TD, projected_TP)
                FLASH(*inputs, None, None, num_tokens, num_tokens, 0.0, True, False)
                add.matrix.multiply(mixed_TK, added_TD)
            weights.head.multiply(normed_TD[-1:], scratch.logits_TV[:1])

        return round(gpu_seconds(_captured(parts).replay, REPEATS) * 1e3, 3)

    def profile(self, size: int, context: int) -> dict[str, Any]:
        """Time each kernel of one step, in microseconds, with no kernel overlapping another."""
        self.kernels.overlap = False
        graph = self._graph(size, context)
        self.kernels.overlap = True
        graph.replay()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            for _ in range(3):
                graph.replay()
            torch.cuda.synchronize()
        return {
            event.key[:80]: self._kernel(event.key, event.device_time_total / 3, event.count // 3)
            for event in profiler.key_averages()
            if event.device_time_total
        }

    def _kernel(self, name: str, microseconds: float, calls: int) -> dict[str, float]:
        weights = self.state.weights
        read = {
            "::project<": [layer.products[0].matrix for layer in weights.layers],
            "::add<": [layer.products[1].matrix for layer in weights.layers],
            "::head<": [weights.head],
        }
        found = {"us": round(microseconds, 1), "calls": calls}
        for part, matrices in read.items():
            if part in name:
                num_bytes = sum(tensor.nbytes for matrix in matrices for tensor in matrix.tensors)
                found["weights_tb_per_s"] = round(num_bytes / microseconds / 1e6, 3)
        return found

    def memory_gib(self) -> dict[str, float]:
        """How much GPU memory serves which purpose, in GiB; ``rest`` includes what CUDA itself takes."""
        free, total = torch.cuda.mem_get_info(self._device)
        weights, cache = self.state.weights.num_bytes, 2 * self.state.cache.keys_LNHSE.nbytes
        parts = {"weights": weights, "cache": cache, "rest": total - free - weights - cache}
        return {name: round(num_bytes / (1 << 30), 3) for name, num_bytes in parts.items()}

    def _graph(self, size: int, context: int, through_cublas: bool = False) -> torch.cuda.CUDAGraph:
        tokens = self._tokens([context] * size, list(range(size)))
        self._keep = tokens  # the graph reads them
        return _captured(lambda: self._model.decode(tokens, through_cublas=through_cublas))

    def _tokens(self, positions: Sequence[int], slots: Sequence[int]) -> Tokens:
        """Tokens of sequences whose cache blocks follow each other and are not shared."""
        width = MAX_CONTEXT // BLOCK_SIZE
        stride, num_blocks = self.state.history_SC.shape[1], self.state.cache.keys_LNHSE.shape[1]
        tables = [[(slot * width + i) % num_blocks for i in range(width)] for slot in slots]
        pairs = list(zip(positions, tables, strict=True))
        rows = [
            table[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE for position, table in pairs
        ]
        history = [slot * stride + position for slot, position in zip(slots, positions, strict=True)]
        values = (positions, rows, history, tables)
        return Tokens(*(torch.tensor(value, dtype=torch.int32, device=self._device) for value in values))

    def _bytes(self, size: int, context: int) -> int:
        read = self.state.weights.num_bytes - self.state.weights.embedding_VD.nbytes
        per_token = 2 * GPT_J_6B.num_layers * GPT_J_6B.width * 2
        return read + size * context * per_token


def _weights(device: torch.device) -> PackedWeights:
    weights = empty_weights(GPT_J_6B, device, torch.float16, is_tied=False)
    for tensor in weights.tensors():
        tensor.normal_(0, 0.02)
    for norm in weights.norms():
        norm.weight_D.add_(1)
    return weights


def _captured(work: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """What is enqueued by ``work``, which is also run once before, as a graph."""
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def _time_graph(graph: torch.cuda.CUDAGraph) -> float:
    def steps() -> None:
        for _ in range(STEPS):
            graph.replay()

    return gpu_seconds(steps, REPEATS) / STEPS


def numbers(raw: str) -> list[int]:
    """Read an option's whole numbers, which have commas between them."""
    return [int(part) for part in raw.split(",")] if raw else []
