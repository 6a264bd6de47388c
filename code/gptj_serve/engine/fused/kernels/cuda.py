"""The CUDA kernels behind `gptj_serve.engine.fused.kernels.protocol.Kernels`: a C library, by ctypes."""

import ctypes
from pathlib import Path

import torch

from gptj_serve.engine.failures import BackendDead
from gptj_serve.engine.fused.kernels.protocol import Prompts, State, Tokens
from gptj_serve.engine.fused.layout import counter_sizes
from gptj_serve.engine.fused.weights.formats.plain import PlainMatrix
from gptj_serve.engine.fused.weights.matrix import Matrix
from gptj_serve.engine.fused.weights.pack import Norm, Product

MAX_SMALL_BATCH = 16
"""Rows that the library's `fused_decode` takes."""

MAX_PRODUCTS = 4
"""Products that a layer of the library's has room for."""

FORMATS: dict[type, int] = {PlainMatrix: 0}
"""The library's number of each format: `Format` in ``csrc/fused.h``."""

_int, _long, _float, _pointer = ctypes.c_int32, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p


class _Matrix(ctypes.Structure):
    _fields_ = (("values", _pointer), ("rows", _int), ("columns", _int), ("format", _int))


class _Norm(ctypes.Structure):
    _fields_ = (("weight", _pointer), ("bias", _pointer))


class _Product(ctypes.Structure):
    _fields_ = (
        ("matrix", _Matrix),
        ("bias", _pointer),
        *((name, _int) for name in ("first_biased_row", "epilogue", "first_inner_row")),
        ("norm", _Norm),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        ("products", _Product * MAX_PRODUCTS),
        ("num_products", _int),
        ("keys", _pointer),
        ("values", _pointer),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, _int) for name in ("width", "attention_width", "heads", "head_dim", "rotary_dim", "inner")),
        ("vocab", _int),
        ("epsilon", _float),
        ("embedding", _pointer),
        ("rotary", _pointer),
        ("first_norm", _Norm),
        ("head", _Matrix),
        ("head_bias", _pointer),
    )


class _Tokens(ctypes.Structure):
    _fields_ = (
        *((name, _pointer) for name in ("positions", "cache_rows", "history_rows", "ids", "tables")),
        ("table_width", _int),
        ("history", _pointer),
    )


class _Prompts(ctypes.Structure):
    _fields_ = (
        *((name, _pointer) for name in ("query_borders", "key_borders", "key_rows")),
        ("num_prompts", _int),
        ("all_begin", _int),
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
    "decode": (_pointer, _pointer, _pointer, _pointer, _int, _int, _int),
    "embed": (_pointer, _pointer, _pointer, _int),
    "finish_projection": (_pointer, _pointer, _pointer, _pointer, _int, _int, _int),
    "attend_prompts": (_pointer, _pointer, _pointer, _pointer, _int, _int),
    "attend": (_pointer, _pointer, _pointer, _pointer, _int, _int),
    "add": (_pointer, _pointer, _pointer, _int, _int, _int),
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
        functions.fused_can_attend_prompts.restype = _int
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
        can_attend_prompts: See `Kernels`.

    Raises:
        RuntimeError: The library was built from other sources than this module.
    """

    max_decode_rows = MAX_SMALL_BATCH

    def __init__(self, library: Path, state: State) -> None:
        functions = open_library(library)
        self._functions = {name: getattr(functions, f"fused_{name}") for name in _ARGUMENTS}
        self._error = functions.fused_error
        self._state = state
        self._structures = (_model(state), _layers(state), _scratch(state))
        self._model, first_layer, self._scratch = map(ctypes.addressof, self._structures)
        num_layers, layer_bytes = len(state.weights.layers), ctypes.sizeof(_Layer)
        self._layers = [first_layer + layer * layer_bytes for layer in range(num_layers)]
        self._recent: list[tuple[Tokens, _Tokens]] = []
        self._recent_prompts: tuple[Prompts, _Prompts] | None = None
        self.overlap = bool(functions.fused_can_overlap())
        self.can_attend_prompts = bool(functions.fused_can_attend_prompts())

    def decode(self, tokens: Tokens) -> None:
        """See `Kernels.decode`; 1..16 tokens."""
        of, num, layers = self._address(tokens), tokens.num_tokens, self._layers
        self._call("decode", self._model, layers[0], of, self._scratch, len(layers), num, self.overlap)

    def embed(self, tokens: Tokens) -> None:
        """See `Kernels.embed`."""
        self._call("embed", self._model, self._address(tokens), self._scratch, tokens.num_tokens)

    def finish_projection(self, tokens: Tokens, layer: int, product: int) -> None:
        """See `Kernels.finish_projection`."""
        of, num, at = self._address(tokens), tokens.num_tokens, self._layers[layer]
        self._call("finish_projection", self._model, at, of, self._scratch, product, num, self.overlap)

    def attend_prompts(self, prompts: Prompts, num_tokens: int, layer: int) -> None:
        """See `Kernels.attend_prompts`."""
        if self._recent_prompts is None or self._recent_prompts[0] is not prompts:
            self._recent_prompts = (prompts, _prompts(prompts))
        of, at = ctypes.addressof(self._recent_prompts[1]), self._layers[layer]
        self._call("attend_prompts", self._model, at, of, self._scratch, num_tokens, self.overlap)

    def attend(self, tokens: Tokens, layer: int) -> None:
        """See `Kernels.attend`."""
        of, num, at = self._address(tokens), tokens.num_tokens, self._layers[layer]
        self._call("attend", self._model, at, of, self._scratch, num, self.overlap)

    def add(self, num_tokens: int, layer: int, product: int) -> None:
        """See `Kernels.add`."""
        at = self._layers[layer]
        self._call("add", self._model, at, self._scratch, product, num_tokens, self.overlap)

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
    sizes = (ctypes.c_int32 * 5)()
    functions.fused_sizes(sizes)
    own = [ctypes.sizeof(structure) for structure in (_Model, _Layer, _Tokens, _Prompts, _Scratch)]
    if list(sizes) != own:
        raise RuntimeError(f"the kernel library's structures have sizes {list(sizes)}, expected {own}")


def _tokens(tokens: Tokens, history_SC: torch.Tensor) -> _Tokens:
    tables, ids = tokens.tables_TW, tokens.ids_T
    return _Tokens(
        tokens.positions_T.data_ptr(),
        tokens.cache_rows_T.data_ptr(),
        tokens.history_rows_T.data_ptr(),
        None if ids is None else ids.data_ptr(),
        None if tables is None else tables.data_ptr(),
        0 if tables is None else tables.shape[1],
        history_SC.data_ptr(),
    )


def _prompts(prompts: Prompts) -> _Prompts:
    arrays = (prompts.query_borders_P, prompts.key_borders_P, prompts.key_rows_K)
    return _Prompts(*_pointers(*arrays), len(prompts.query_borders_P) - 1, prompts.all_begin)


def _model(state: State) -> _Model:
    architecture, weights = state.architecture, state.weights
    return _Model(
        architecture.width,
        architecture.attention_width,
        architecture.num_heads,
        architecture.head_dim,
        architecture.positions.dim,
        architecture.inner,
        architecture.vocab_size,
        architecture.epsilon,
        *_pointers(weights.embedding_VD, state.rotary_PR2),
        _norm(weights.first_norm),
        _matrix(weights.head),
        *_pointers(weights.head_bias_V),
    )


def _layers(state: State) -> "ctypes.Array[_Layer]":
    """All layers, one behind the other."""
    keys_LNHSE, values_LNHSE = state.cache.keys_LNHSE, state.cache.values_LNHSE
    layers = (_Layer * len(state.weights.layers))()
    for index, layer in enumerate(state.weights.layers):
        for place, product in enumerate(layer.products):
            layers[index].products[place] = _product(product)
        layers[index].num_products = len(layer.products)
        layers[index].keys, layers[index].values = _pointers(keys_LNHSE[index], values_LNHSE[index])
    return layers


def _product(product: Product) -> _Product:
    return _Product(
        _matrix(product.matrix),
        *_pointers(product.bias_N),
        product.first_biased_row,
        product.epilogue,
        product.first_inner_row,
        _Norm() if product.norm is None else _norm(product.norm),
    )


def _norm(norm: Norm) -> _Norm:
    return _Norm(*_pointers(norm.weight_D, norm.bias_D))


def _matrix(matrix: Matrix) -> _Matrix:
    (values,) = _pointers(*matrix.tensors)
    return _Matrix(values, *matrix.shape, FORMATS[type(matrix)])


def _scratch(state: State) -> _Scratch:
    scratch = state.scratch
    sizes = list(counter_sizes(state.architecture, scratch.logits_TV.shape[0]))
    best, arrived_heads, arrived_splits, arrived = torch.split(scratch.counters, sizes)
    return _Scratch(
        *_pointers(
            scratch.hidden_TD,
            scratch.normed_TD,
            scratch.query_TA,
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
