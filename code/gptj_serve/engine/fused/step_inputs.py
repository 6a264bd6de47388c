"""Packs a step's inputs into one host-to-device copy.

The host side of the copy is pinned. PyTorch's allocator reuses pinned memory only when its copies are over,
so none has to be kept track of here. Shape suffixes are those of `kernels`; R is rows that choose a token.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from gptj_serve.engine.fused.kernels.prompt_attention import PromptPart
from gptj_serve.engine.fused.kernels.protocol import BLOCK_SIZE, Tokens
from gptj_serve.engine.fused.model import PrefillBatch
from gptj_serve.engine.fused.schedule.plan import Row, RunnerLimits


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

    def num_decode_words(self, size: int) -> int:
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
        words = np.zeros(self.num_decode_words(size), dtype=np.int32)
        positions_T, cache_rows_T, history_rows_T = words[: 3 * size].reshape(3, size)
        positions_T[len(rows) :] = -1
        history_rows_T[len(rows) :] = self._padding_row
        if rows:
            columns_4T = self._columns(rows)
            positions_T[: len(rows)], cache_rows_T[: len(rows)], history_rows_T[: len(rows)], _ = columns_4T
        self._fill_tables(words[3 * size :], rows)
        uploaded = _upload(words, target)
        positions, cache_rows, history_rows = uploaded[: 3 * size].view(3, size).unbind(0)
        tables = uploaded[3 * size :].view(size, self._table_width)
        return Tokens(positions, cache_rows, history_rows, tables)

    def prefill(self, prompts: Sequence[Row], decodes: Sequence[Row], device: torch.device) -> PrefillBatch:
        """Start the upload of chunks of prompts, and of sequences that are decoded beside them."""
        rows, num_decodes = [*decodes, *prompts], len(decodes)
        columns_4T, last = self._columns(rows), _last(rows)
        borders = np.cumsum([num_decodes, *(row.end - row.start for row in prompts)])
        tables = np.zeros(num_decodes * self._table_width, dtype=np.int32)
        self._fill_tables(tables, decodes)
        blocks = [row.blocks[: -(-row.end // BLOCK_SIZE)] if row.start else [] for row in prompts]
        fields = [columns_4T.reshape(-1), np.asarray(last), borders, tables, np.concatenate([[], *blocks])]
        flat = np.concatenate(fields).astype(np.int32)
        words = _upload(flat, torch.empty(flat.size, dtype=torch.int32, device=device))
        columns, last_R, borders_P, tables_X, blocks_X = torch.split(words, [field.size for field in fields])
        positions_T, cache_rows_T, history_rows_T, ids_T = columns.view(4, -1).unbind(0)
        tokens = Tokens(positions_T, cache_rows_T, history_rows_T)
        last_R = last_R.long()
        tables_TW = tables_X.view(num_decodes, self._table_width)
        return PrefillBatch(
            tokens=tokens,
            decoding=replace(tokens.select(slice(num_decodes)), tables_TW=tables_TW) if decodes else None,
            ids_T=ids_T[num_decodes:],
            parts=_parts(prompts, borders.tolist(), torch.split(blocks_X, [len(of) for of in blocks])),
            borders=borders_P,
            last_R=last_R,
            last=tokens.select(last_R),
        )

    def _columns(self, rows: Sequence[Row]) -> npt.NDArray[np.int64]:
        """Of every token: position, place in the cache, place in the history, id where it is known."""
        positions_T = np.concatenate([np.arange(row.start, row.end) for row in rows])
        blocks_T = np.concatenate(
            [np.asarray(row.blocks)[np.arange(row.start, row.end) // BLOCK_SIZE] for row in rows]
        )
        slots_T = np.repeat([row.slot for row in rows], [row.end - row.start for row in rows])
        ids_T = np.concatenate([np.asarray(row.token_ids or (0,)) for row in rows])
        cache_rows_T = blocks_T * BLOCK_SIZE + positions_T % BLOCK_SIZE
        return np.stack([positions_T, cache_rows_T, slots_T * self._history_width + positions_T, ids_T])

    def _fill_tables(self, words: npt.NDArray[np.int32], rows: Sequence[Row]) -> None:
        """The rows' cache blocks, one line each."""
        tables_TW = words.reshape(-1, self._table_width)
        for place, row in enumerate(rows):
            num_blocks = -(-row.end // BLOCK_SIZE)
            tables_TW[place, :num_blocks] = row.blocks[:num_blocks]


def _last(rows: Sequence[Row]) -> list[int]:
    """Indexes of the tokens after which one is chosen."""
    ends = np.cumsum([row.end - row.start for row in rows])
    return [int(end) - 1 for row, end in zip(rows, ends, strict=True) if row.samples]


def _parts(rows: Sequence[Row], borders: Sequence[int], blocks: Sequence[torch.Tensor]) -> list[PromptPart]:
    return [
        PromptPart(first, row.end - row.start, row.start, blocks_N.long() if row.start else None)
        for row, first, blocks_N in zip(rows, borders[:-1], blocks, strict=True)
    ]


def _upload(values: npt.NDArray[np.int32], target: torch.Tensor) -> torch.Tensor:
    """Start a copy into the beginning of the target, in order with the work that is queued there."""
    host = torch.from_numpy(values)
    if target.device.type == "cuda":
        host = host.pin_memory()
    part = target[: values.size]
    part.copy_(host, non_blocking=True)
    return part
