"""The CUDA kernels behind `gptj_serve.engine.fused.kernels.protocol.Kernels`: a C library, by ctypes."""

import ctypes
from pathlib import Path

import torch

from gptj_serve.engine.failures import BackendDead
from gptj_serve.engine.fused.kernels.protocol import State, Tokens

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
            "projected",
            "mixed",
            "added",
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


_ARGUMENTS = {
    "decode": (_pointer, _pointer, _pointer, _pointer, _int, _int),
    "embed": (_pointer, _pointer, _pointer, _int),
    "finish_in": (_pointer, _pointer, _pointer, _pointer, _int, _int, _int),
    "attend": (_pointer, _pointer, _pointer, _pointer, _int, _int, _int),
    "add_and_normalise": (_pointer, _pointer, _int, _int, _int),
    "choose": (_pointer, _pointer, _pointer, _int, _int),
}
"""The library's functions without their prefix, and what they take before the stream."""


def open_library(library: Path) -> ctypes.CDLL:
    """Load the library and declare its functions. Needs no GPU.

    Args:
        library: As `gptj_serve.engine.fused.kernels.library.find_library` has it.

    Raises:
        OSError: It does not load.
        RuntimeError: It was built from other sources than this module.
    """
    functions = ctypes.CDLL(str(library))
    try:
        _check_layout(functions)
        for name, types in _ARGUMENTS.items():
            getattr(functions, f"fused_{name}").argtypes = [*types, _pointer]
        functions.fused_error.restype = ctypes.c_char_p
        functions.fused_can_overlap.restype = _int
    except AttributeError as error:
        raise RuntimeError(f"the kernel library lacks a function: {error}") from error
    return functions


class CudaKernels:
    """The kernels for one `State` on the current device.

    Args:
        library: As `gptj_serve.engine.fused.kernels.library.find_library` has it.
        state: What they work on; float16, on the GPU, contiguous.

    Attributes:
        overlap: Whether kernels may start while the one before still runs.

    Raises:
        RuntimeError: The library was built from other sources than this module.
    """

    max_decode_rows = MAX_SMALL_BATCH

    def __init__(self, library: Path, state: State) -> None:
        functions = open_library(library)
        self._functions = {name: getattr(functions, f"fused_{name}") for name in _ARGUMENTS}
        self._error = functions.fused_error
        self._state = state
        self._structures = (_model(state), _cache(state), _scratch(state))
        self._model, self._cache, self._scratch = map(ctypes.addressof, self._structures)
        self._recent: list[tuple[Tokens, _Tokens]] = []
        self.overlap = bool(functions.fused_can_overlap())

    def decode(self, tokens: Tokens) -> None:
        """See `Kernels.decode`; 1..16 tokens."""
        of, num = self._address(tokens), tokens.num_tokens
        self._call("decode", self._model, self._cache, of, self._scratch, num, self.overlap)

    def embed(self, tokens: Tokens) -> None:
        """See `Kernels.embed`."""
        self._call("embed", self._model, self._address(tokens), self._scratch, tokens.num_tokens)

    def finish_in(self, tokens: Tokens, layer: int) -> None:
        """See `Kernels.finish_in`."""
        of, num = self._address(tokens), tokens.num_tokens
        self._call("finish_in", self._model, self._cache, of, self._scratch, num, layer, self.overlap)

    def attend(self, tokens: Tokens, layer: int) -> None:
        """See `Kernels.attend`."""
        of, num = self._address(tokens), tokens.num_tokens
        self._call("attend", self._model, self._cache, of, self._scratch, num, layer, self.overlap)

    def add_and_normalise(self, num_tokens: int, layer: int) -> None:
        """See `Kernels.add_and_normalise`."""
        self._call("add_and_normalise", self._model, self._scratch, num_tokens, layer, self.overlap)

    def choose(self, tokens: Tokens) -> None:
        """See `Kernels.choose`."""
        of, num = self._address(tokens), tokens.num_tokens
        self._call("choose", self._model, of, self._scratch, num, self.overlap)

    def _address(self, tokens: Tokens) -> int:
        """The tokens as the library takes them. One pass asks for the same two again and again."""
        for known, structure in self._recent:
            if known is tokens:
                return ctypes.addressof(structure)
        structure = _tokens(tokens, self._state.history_SC)
        self._recent = [(tokens, structure), *self._recent[:1]]
        return ctypes.addressof(structure)

    def _call(self, name: str, *arguments: int) -> None:
        error = self._functions[name](*arguments, torch.cuda.current_stream().cuda_stream)
        if error:
            raise BackendDead(f"{name}: CUDA error: {self._error(error).decode()}")


def _check_layout(functions: ctypes.CDLL) -> None:
    sizes = (ctypes.c_int32 * 4)()
    functions.fused_sizes(sizes)
    own = [ctypes.sizeof(structure) for structure in (_Model, _Cache, _Tokens, _Scratch)]
    if list(sizes) != own:
        raise RuntimeError(f"the kernel library's structures have sizes {list(sizes)}, expected {own}")


def _tokens(tokens: Tokens, history_SC: torch.Tensor) -> _Tokens:
    tables = tokens.tables_TW
    return _Tokens(
        tokens.positions_T.data_ptr(),
        tokens.cache_rows_T.data_ptr(),
        tokens.history_rows_T.data_ptr(),
        None if tables is None else tables.data_ptr(),
        0 if tables is None else tables.shape[1],
        history_SC.data_ptr(),
    )


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
    sizes = [2 * max_rows, heads * 8, max_rows * heads, 8]
    best, arrived_heads, arrived_splits, arrived = torch.split(scratch.counters, sizes)
    return _Scratch(
        *_pointers(
            scratch.hidden_TD,
            scratch.normed_TD,
            scratch.query_TD,
            scratch.projected_TP,
            scratch.mixed_TK,
            scratch.added_TD,
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
