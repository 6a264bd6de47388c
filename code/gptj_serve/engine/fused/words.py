"""What the device has to know of a step, as numbers in one upload.

The host side of an upload is pinned. PyTorch's allocator gives such memory out again only when its copies
are over, so none has to be kept track of here. Shape suffixes as in `kernels`; R rows that choose a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from gptj_serve.engine.fused.kernels import BLOCK_SIZE, Tokens
from gptj_serve.engine.fused.model import PromptPart
from gptj_serve.engine.fused.plan import Row, RunnerLimits


@dataclass(frozen=True, slots=True)
class Prompts:
    """Chunks of prompts, as `FusedModel.prefill` takes them.

    Attributes:
        tokens: All tokens, sequence by sequence.
        ids_T: int32, their ids.
        parts: The sequences.
        last_R: int64, indexes of the tokens after which one is chosen.
        last: Those tokens.
    """

    tokens: Tokens
    ids_T: torch.Tensor  # noqa: N815
    parts: Sequence[PromptPart]
    last_R: torch.Tensor  # noqa: N815
    last: Tokens


class StepWords:
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
        tables_TW = words[3 * size :].reshape(size, self._table_width)
        positions_T[len(rows) :] = -1
        history_rows_T[len(rows) :] = self._padding_row
        for place, row in enumerate(rows):
            positions_T[place] = row.start
            cache_rows_T[place] = row.blocks[row.start // BLOCK_SIZE] * BLOCK_SIZE + row.start % BLOCK_SIZE
            history_rows_T[place] = row.slot * self._history_width + row.start
            num_blocks = -(-row.end // BLOCK_SIZE)
            tables_TW[place, :num_blocks] = row.blocks[:num_blocks]
        uploaded = _upload(words, target)
        positions, cache_rows, history_rows = uploaded[: 3 * size].view(3, size).unbind(0)
        tables = uploaded[3 * size :].view(size, self._table_width)
        return Tokens(positions, cache_rows, history_rows, tables)

    def prompts(self, rows: Sequence[Row], device: torch.device) -> Prompts:
        """Start the upload of chunks of prompts."""
        columns_4T, last = self._columns(rows), _last(rows)
        tables = [row.blocks[: -(-row.end // BLOCK_SIZE)] if row.start else [] for row in rows]
        flat = np.concatenate([columns_4T.reshape(-1), last, *tables]).astype(np.int32)
        words = _upload(flat, torch.empty(flat.size, dtype=torch.int32, device=device))
        columns, last_R, blocks = torch.split(
            words, [columns_4T.size, len(last), flat.size - columns_4T.size - len(last)]
        )
        positions_T, cache_rows_T, history_rows_T, ids_T = columns.view(4, -1).unbind(0)
        tokens = Tokens(positions_T, cache_rows_T, history_rows_T)
        last_R = last_R.long()
        picked = [part.index_select(0, last_R) for part in (positions_T, cache_rows_T, history_rows_T)]
        return Prompts(tokens, ids_T, _parts(rows, tables, blocks), last_R, Tokens(*picked))

    def _columns(self, rows: Sequence[Row]) -> npt.NDArray[np.int64]:
        """Of every token: position, place in the cache, place in the history, id."""
        positions_T = np.concatenate([np.arange(row.start, row.end) for row in rows])
        blocks_T = np.concatenate(
            [np.asarray(row.blocks)[np.arange(row.start, row.end) // BLOCK_SIZE] for row in rows]
        )
        slots_T = np.repeat([row.slot for row in rows], [row.end - row.start for row in rows])
        ids_T = np.concatenate([np.asarray(row.token_ids) for row in rows])
        cache_rows_T = blocks_T * BLOCK_SIZE + positions_T % BLOCK_SIZE
        return np.stack([positions_T, cache_rows_T, slots_T * self._history_width + positions_T, ids_T])


def _last(rows: Sequence[Row]) -> list[int]:
    """Indexes of the tokens after which one is chosen."""
    ends = np.cumsum([row.end - row.start for row in rows])
    return [int(end) - 1 for row, end in zip(rows, ends, strict=True) if row.samples]


def _parts(rows: Sequence[Row], tables: Sequence[Sequence[int]], blocks: torch.Tensor) -> list[PromptPart]:
    parts, first = [], 0
    of_each = torch.split(blocks, [len(table) for table in tables])
    for row, table, blocks_N in zip(rows, tables, of_each, strict=True):
        num_tokens = row.end - row.start
        parts.append(PromptPart(first, num_tokens, row.start, blocks_N.long() if table else None))
        first += num_tokens
    return parts


def _upload(values: npt.NDArray[np.int32], target: torch.Tensor) -> torch.Tensor:
    """Start a copy into the beginning of the target, in order with the work that is queued there."""
    host = torch.from_numpy(values)
    if target.device.type == "cuda":
        host = host.pin_memory()
    part = target[: values.size]
    part.copy_(host, non_blocking=True)
    return part
