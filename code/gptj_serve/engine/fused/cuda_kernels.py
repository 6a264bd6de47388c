"""The CUDA kernels behind `gptj_serve.engine.fused.kernels.Kernels`: a C library, called through ctypes."""

import ctypes
from pathlib import Path
from typing import Any

import torch

from gptj_serve.engine.backend import BackendDead
from gptj_serve.engine.fused.kernels import State, Tokens

MAX_SMALL_BATCH = 16
"""Rows that the library's `fused_decode` takes."""

_int, _long, _float, _pointer = ctypes.c_int32, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, _int) for name in ("layers", "d", "heads", "head_dim", "rotary_dim", "inner", "vocab")),
        ("epsilon", _float),
        *((name, _pointer) for name in ("embedding", "in_weight", "in_bias", "out_weight", "out_bias")),
        *((name, _pointer) for name in ("norm_weight", "norm_bias", "head_weight", "head_bias", "rotary")),
    )


class _Cache(ctypes.Structure):
    _fields_ = (("keys", _pointer), ("values", _pointer), ("layer_stride", _long))


class _Tokens(ctypes.Structure):
    _fields_ = (
        *((name, _pointer) for name in ("positions", "cache_rows", "history_rows", "tables")),
        ("table_width", _int),
        ("history", _pointer),
    )


class _Scratch(ctypes.Structure):
    _fields_ = tuple(
        (name, _pointer)
        for name in (
            "hidden",
            "normed",
            "query",
            "mixed",
            "logits",
            "chosen",
            "chosen_logit",
            "partial",
            "best",
            "arrived_heads",
            "arrived_splits",
            "arrived",
        )
    )


class CudaKernels:
    """The kernels for one `State` on the current device.

    Args:
        library: As `gptj_serve.engine.fused.compiler.find_library` has it.
        state: What they work on; float16, on the GPU, contiguous.

    Raises:
        RuntimeError: The library was built from other sources than this module.
    """

    max_decode_rows = MAX_SMALL_BATCH

    def __init__(self, library: Path, state: State) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.fused_error.restype = ctypes.c_char_p
        self._check_layout()
        self._state = state
        self._model, self._cache, self._scratch = _model(state), _cache(state), _scratch(state)
        # a kernel may start before the one before it ends from Hopper on
        self._overlap = int(torch.cuda.get_device_capability(state.history_SC.device) >= (9, 0))

    def _check_layout(self) -> None:
        sizes = (ctypes.c_int32 * 4)()
        self._library.fused_sizes(sizes)
        own = [ctypes.sizeof(structure) for structure in (_Model, _Cache, _Tokens, _Scratch)]
        if list(sizes) != own:
            raise RuntimeError(f"the kernel library's structures have sizes {list(sizes)}, expected {own}")

    def decode(self, tokens: Tokens) -> None:
        """See `Kernels.decode`; 1..16 tokens."""
        self._call(
            "fused_decode",
            self._model,
            self._cache,
            self._tokens(tokens),
            self._scratch,
            _int(tokens.num_tokens),
            _int(self._overlap),
        )

    def embed(self, tokens: Tokens) -> None:
        """See `Kernels.embed`."""
        self._call("fused_embed", self._model, self._tokens(tokens), self._scratch, _int(tokens.num_tokens))

    def finish_in(self, projected_TP: torch.Tensor, tokens: Tokens, layer: int) -> None:
        """See `Kernels.finish_in`."""
        self._call(
            "fused_finish_in",
            self._model,
            self._cache,
            self._tokens(tokens),
            self._scratch,
            _pointer(projected_TP.data_ptr()),
            _int(tokens.num_tokens),
            _int(layer),
        )

    def attend(self, projected_TP: torch.Tensor, tokens: Tokens, layer: int) -> None:
        """See `Kernels.attend`."""
        self._call(
            "fused_attend",
            self._model,
            self._cache,
            self._tokens(tokens),
            self._scratch,
            _pointer(projected_TP.data_ptr()),
            _long(projected_TP.stride(0)),
            _int(tokens.num_tokens),
            _int(layer),
        )

    def add_and_normalise(self, added_TD: torch.Tensor, layer: int) -> None:
        """See `Kernels.add_and_normalise`."""
        self._call(
            "fused_add_and_normalise",
            self._model,
            self._scratch,
            _pointer(added_TD.data_ptr()),
            _int(added_TD.shape[0]),
            _int(layer),
        )

    def choose(self, tokens: Tokens) -> None:
        """See `Kernels.choose`."""
        self._call("fused_choose", self._model, self._tokens(tokens), self._scratch, _int(tokens.num_tokens))

    def _tokens(self, tokens: Tokens) -> _Tokens:
        tables = tokens.tables_TW
        return _Tokens(
            tokens.positions_T.data_ptr(),
            tokens.cache_rows_T.data_ptr(),
            tokens.history_rows_T.data_ptr(),
            None if tables is None else tables.data_ptr(),
            0 if tables is None else tables.shape[1],
            self._state.history_SC.data_ptr(),
        )

    def _call(self, name: str, *arguments: "ctypes.Structure | ctypes._SimpleCData[Any]") -> None:
        values = [ctypes.byref(one) if isinstance(one, ctypes.Structure) else one for one in arguments]
        stream = _pointer(torch.cuda.current_stream().cuda_stream)
        error = getattr(self._library, name)(*values, stream)
        if error:
            raise BackendDead(f"{name}: CUDA error: {self._library.fused_error(error).decode()}")


def _model(state: State) -> _Model:
    geometry, weights = state.geometry, state.weights
    return _Model(
        geometry.num_layers,
        geometry.width,
        geometry.num_heads,
        geometry.head_dim,
        geometry.rotary_dim,
        geometry.inner,
        geometry.vocab_size,
        geometry.epsilon,
        *_pointers(
            weights.embedding_VD,
            weights.in_weight_LND,
            weights.in_bias_LF,
            weights.out_weight_LDK,
            weights.out_bias_LD,
            weights.norm_weight_LD,
            weights.norm_bias_LD,
            weights.head_weight_VD,
            weights.head_bias_V,
            state.rotary_PR2,
        ),
    )


def _cache(state: State) -> _Cache:
    keys, values = state.cache.keys_LNHSE, state.cache.values_LNHSE
    return _Cache(*_pointers(keys, values), keys.stride(0))


def _scratch(state: State) -> _Scratch:
    scratch = state.scratch
    max_rows, heads = scratch.logits_TV.shape[0], state.geometry.num_heads
    best, arrived_heads, arrived_splits, arrived = scratch.counters.split(
        [2 * max_rows, heads * 8, max_rows * heads, 8]
    )
    return _Scratch(
        *_pointers(
            scratch.hidden_TD,
            scratch.normed_TD,
            scratch.query_TD,
            scratch.mixed_TK,
            scratch.logits_TV,
            scratch.chosen_2T[0],
            scratch.chosen_2T[1],
            scratch.partial,
            best,
            arrived_heads,
            arrived_splits,
            arrived,
        )
    )


def _pointers(*tensors: torch.Tensor) -> list[int]:
    for tensor in tensors:
        if not tensor.is_contiguous():
            raise ValueError(f"a tensor of shape {tuple(tensor.shape)} is not contiguous")
    return [tensor.data_ptr() for tensor in tensors]
