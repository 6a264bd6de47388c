"""Packs a step's inputs into one host-to-device copy.

The host side of the copy is pinned. PyTorch's allocator reuses pinned memory only when its copies are over,
so none has to be kept track of here. Shape suffixes are those of `kernels`; R is rows that choose a token.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
import numpy.typing as npt
import torch

from gptj_serve.engine.fused.kernels.protocol import BLOCK_SIZE, PromptPart, Prompts, Tokens
from gptj_serve.engine.fused.model import PrefillBatch
from gptj_serve.engine.fused.schedule.plan import Row, RunnerLimits

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class PrefillShape:
    """What a prefill has room for. A step that has less is padded, so that one CUDA graph serves many.

    Attributes:
        num_tokens: Of all sequences.
        num_prompts: Chunks of prompts.
        num_decodes: Sequences that are decoded beside them.
        num_choosing: Rows that choose a token.
        num_keys: Keys of all prompts together; 0 where none has any in the cache yet.
        max_queries: Tokens of one prompt.
    """

    num_tokens: int
    num_prompts: int
    num_decodes: int
    num_choosing: int
    num_keys: int
    max_queries: int

    @staticmethod
    def of(prompts: Sequence[Row], decodes: Sequence[Row]) -> "PrefillShape":
        """Exactly as much as these need."""
        lengths = [row.end - row.start for row in prompts]
        ends = [row.end for row in prompts]
        return PrefillShape(
            num_tokens=len(decodes) + sum(lengths),
            num_prompts=len(prompts),
            num_decodes=len(decodes),
            num_choosing=len(decodes) + sum(row.samples for row in prompts),
            num_keys=sum(ends) if any(row.start for row in prompts) else 0,
            max_queries=max(lengths),
        )

    def holds(self, other: "PrefillShape") -> bool:
        """There is room for the other one."""
        return all(mine >= its for mine, its in zip(astuple(self), astuple(other), strict=True))


class StepInputs:
    """Packs rows of a plan.

    Args:
        limits: The runner's.
        history_width: Positions in one row of the history.
    """

    def __init__(self, limits: RunnerLimits, history_width: int) -> None:
        self._table_width = -(-limits.max_context // BLOCK_SIZE)
        self._history_width = history_width
        # the row after the last slot's
        self._padding_row = limits.max_batch_size * history_width

    def num_decode_ints(self, size: int) -> int:
        """Numbers that a batch of this size takes."""
        return size * (3 + self._table_width)

    def decode(self, rows: Sequence[Row], size: int, target: torch.Tensor) -> Tokens:
        """Start the upload of a batch.

        Args:
            rows: The sequences, one token each.
            size: Their number and the padding's.
            target: int32, flat, where a graph of this size finds them.

        Returns:
            Views of the target.
        """
        ints = np.zeros(self.num_decode_ints(size), dtype=np.int32)
        self._fill_columns(ints[: 3 * size].reshape(3, size), self._columns(rows)[:3])
        self._fill_tables(ints[3 * size :], rows)
        uploaded = _upload(ints, target)
        positions, cache_rows, history_rows = uploaded[: 3 * size].view(3, size).unbind(0)
        tables = uploaded[3 * size :].view(size, self._table_width)
        return Tokens(positions, cache_rows, history_rows, tables)

    def num_prefill_ints(self, shape: PrefillShape) -> int:
        """Numbers that a prefill of this shape takes."""
        return sum(self._prefill_sizes(shape).values())

    def upload_prefill(
        self, prompts: Sequence[Row], decodes: Sequence[Row], shape: PrefillShape, target: torch.Tensor
    ) -> None:
        """Start the upload of chunks of prompts, and of sequences that are decoded beside them.

        Args:
            prompts: The chunks.
            decodes: The sequences, one token each.
            shape: Has room for all.
            target: int32, flat; `prefill_batch` finds them there.
        """
        sizes = self._prefill_sizes(shape)
        ints = np.zeros(sum(sizes.values()), dtype=np.int32)
        fields = dict(zip(sizes, np.split(ints, np.cumsum([*sizes.values()])[:-1]), strict=True))
        rows, num_decodes = [*decodes, *prompts], len(decodes)
        columns_4T, last = self._columns(rows), _last(rows)
        self._fill_columns(fields["tokens"].reshape(4, -1), columns_4T)
        self._fill_columns(fields["choosing"].reshape(3, -1), columns_4T[:3, last])
        fields["last"][: len(last)] = last
        fields["decode_positions"][:] = -1
        fields["decode_positions"][:num_decodes] = columns_4T[0, :num_decodes]
        self._fill_tables(fields["tables"], decodes)
        _fill_borders(fields["query_borders"], num_decodes, [row.end - row.start for row in prompts])
        if shape.num_keys:
            _fill_borders(fields["key_borders"], 0, [row.end for row in prompts])
            for row, first in zip(prompts, fields["key_borders"], strict=False):
                fields["key_rows"][first : first + row.end] = _cache_rows(row, 0)
        _upload(ints, target)

    def prefill_batch(
        self, shape: PrefillShape, target: torch.Tensor, parts: tuple[PromptPart, ...] = ()
    ) -> PrefillBatch:
        """What `upload_prefill` has put there, as views.

        Args:
            shape: As given there.
            target: As given there.
            parts: `prompt_parts` of the rows; a graph that serves many has none.
        """
        sizes = self._prefill_sizes(shape)
        views = torch.split(target[: sum(sizes.values())], [*sizes.values()])
        fields = dict(zip(sizes, views, strict=True))
        positions_T, cache_rows_T, history_rows_T, ids_T = fields["tokens"].view(4, -1).unbind(0)
        decodes = slice(shape.num_decodes)
        tables_TW = fields["tables"].view(-1, self._table_width)
        decoding = Tokens(
            fields["decode_positions"], cache_rows_T[decodes], history_rows_T[decodes], tables_TW
        )
        query_borders = fields["query_borders"]
        return PrefillBatch(
            tokens=Tokens(positions_T, cache_rows_T, history_rows_T, ids_T=ids_T),
            decoding=decoding if shape.num_decodes else None,
            prompts=Prompts(
                parts=parts,
                query_borders_P=query_borders,
                key_borders_P=fields["key_borders"] if shape.num_keys else query_borders,
                # the keys of prompts that begin are their tokens'
                key_rows_K=fields["key_rows"] if shape.num_keys else cache_rows_T,
                all_begin=not shape.num_keys,
                max_queries=shape.max_queries,
            ),
            last_R=fields["last"],
            last=Tokens(*fields["choosing"].view(3, -1).unbind(0)),
        )

    def _prefill_sizes(self, shape: PrefillShape) -> dict[str, int]:
        """Every field of a prefill and its size, in the order in which they lie."""
        return {
            "tokens": 4 * shape.num_tokens,
            "choosing": 3 * shape.num_choosing,
            "last": shape.num_choosing,
            "decode_positions": shape.num_decodes,
            "tables": shape.num_decodes * self._table_width,
            "query_borders": shape.num_prompts + 1,
            "key_borders": shape.num_prompts + 1 if shape.num_keys else 0,
            "key_rows": shape.num_keys,
        }

    def _columns(self, rows: Sequence[Row]) -> Ints:
        """Of every token: position, place in the cache, place in the history, id or -1 if it stands there."""
        if not rows:
            return np.zeros((4, 0), dtype=np.int32)
        positions_T = np.concatenate([np.arange(row.start, row.end) for row in rows])
        cache_rows_T = np.concatenate([_cache_rows(row, row.start) for row in rows])
        slots_T = np.repeat([row.slot for row in rows], [row.end - row.start for row in rows])
        ids_T = np.concatenate([np.asarray(row.token_ids or (-1,)) for row in rows])
        history_rows_T = slots_T * self._history_width + positions_T
        return np.stack([positions_T, cache_rows_T, history_rows_T, ids_T]).astype(np.int32)

    def _fill_columns(self, target: Ints, columns: Ints) -> None:
        """These tokens, then padding: no position, the history's last row, no id."""
        num_tokens = columns.shape[1]
        target[:, :num_tokens] = columns
        target[:, num_tokens:] = np.array([-1, 0, self._padding_row, -1])[: len(target), None]

    def _fill_tables(self, ints: Ints, rows: Sequence[Row]) -> None:
        """The rows' cache blocks, one line each."""
        tables_TW = ints.reshape(-1, self._table_width)
        for place, row in enumerate(rows):
            num_blocks = -(-row.end // BLOCK_SIZE)
            tables_TW[place, :num_blocks] = row.blocks[:num_blocks]


def prompt_parts(prompts: Sequence[Row], num_decodes: int) -> tuple[PromptPart, ...]:
    """Where the prompts' tokens lie in a prefill, behind those of the sequences that are decoded."""
    parts, first = [], num_decodes
    for row in prompts:
        parts.append(PromptPart(first, row.end - row.start, row.start))
        first += row.end - row.start
    return tuple(parts)


def _cache_rows(row: Row, start: int) -> npt.NDArray[np.int64]:
    """Where a row's positions from ``start`` on lie in the cache."""
    positions_T = np.arange(start, row.end)
    return np.asarray(row.blocks)[positions_T // BLOCK_SIZE] * BLOCK_SIZE + positions_T % BLOCK_SIZE


def _fill_borders(target: Ints, first: int, lengths: Sequence[int]) -> None:
    """Where each of these ranges begins and the last one ends; those that are padding are empty."""
    borders = np.cumsum([first, *lengths])
    target[: len(borders)] = borders
    target[len(borders) :] = borders[-1]


def _last(rows: Sequence[Row]) -> list[int]:
    """Indexes of the tokens after which one is chosen."""
    ends = np.cumsum([row.end - row.start for row in rows])
    return [int(end) - 1 for row, end in zip(rows, ends, strict=True) if row.samples]


def _upload(values: Ints, target: torch.Tensor) -> torch.Tensor:
    """Start a copy into the beginning of the target, in order with the work that is queued there."""
    host = torch.from_numpy(values)
    if target.device.type == "cuda":
        host = host.pin_memory()
    part = target[: values.size]
    part.copy_(host, non_blocking=True)
    return part
