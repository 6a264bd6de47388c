"""Moves a checkpoint's tensors into their slots: several threads read, the device takes what they have read.

Each thread has buffers of its own and, on a GPU, a stream of its own. There the buffers are pinned, so that a
copy to the GPU runs while the thread reads the next part into its other buffer. Pinning costs a second for 2
GiB: the buffers are small. What arrives lies as in the file; a slot converts it and puts it in place on the
device, at the speed of its memory.
"""

import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from gptj_serve.engine.fused.weights.matrix import Slot
from gptj_serve.models.sources import Source

NUM_READERS = 8
CHUNK_BYTES = 16 << 20
BUFFERS_PER_READER = 2


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a tensor that is moved at once: whole rows, or a part of one that is too large for that.

    Attributes:
        source: What to read.
        slot: Where it goes.
        row: The first row.
        column: The first column.
        num_rows: How many.
        num_columns: How many.
    """

    source: Source
    slot: Slot
    row: int
    column: int
    num_rows: int
    num_columns: int

    @property
    def num_bytes(self) -> int:
        """Its size in the file."""
        return self.num_rows * self.num_columns * self.source.dtype.itemsize

    def read(self, buffer_N: torch.Tensor) -> None:
        """Read it from the file into the beginning of a host buffer of bytes."""
        _, columns = self.slot.shape
        first_byte = (self.row * columns + self.column) * self.source.dtype.itemsize
        self.source.read(first_byte, buffer_N[: self.num_bytes])

    def put(self, buffer_N: torch.Tensor) -> None:
        """Put it into its slot from the beginning of a buffer of bytes on the slot's device."""
        values_N = buffer_N[: self.num_bytes].view(self.source.dtype)
        self.slot.put(values_N.view(self.num_rows, self.num_columns), self.row, self.column)


@dataclass(frozen=True, slots=True)
class Uploaded:
    """What an upload took.

    Attributes:
        num_bytes: Read from the files.
        read_s: A reader's time for reading, on average.
        put_s: A reader's time for starting the rest and waiting for it, on average.
    """

    num_bytes: int
    read_s: float
    put_s: float


def split(source: Source, slot: Slot, chunk_bytes: int) -> Iterator[Chunk]:
    """The chunks of one tensor, in the order of the file.

    Args:
        source: The tensor.
        slot: Where it goes; of the same shape.
        chunk_bytes: Their size at most; no chunk is smaller than one number.
    """
    rows, columns = slot.shape
    most = max(1, chunk_bytes // source.dtype.itemsize)
    if most >= columns:
        step = most // columns
        for row in range(0, rows, step):
            yield Chunk(source, slot, row, 0, min(step, rows - row), columns)
        return
    for row in range(rows):
        for column in range(0, columns, most):
            yield Chunk(source, slot, row, column, 1, min(most, columns - column))


def upload(
    sources: Mapping[str, Source],
    slots: Mapping[str, Slot],
    device: torch.device,
    *,
    chunk_bytes: int = CHUNK_BYTES,
    num_readers: int = NUM_READERS,
) -> Uploaded:
    """Fill every slot from the source of the same name. When it returns, all is in place.

    Args:
        sources: Where the tensors come from; those without a slot are left alone.
        slots: Where they go, on ``device``.
        device: A CUDA device or the CPU.
        chunk_bytes: Size of a buffer; twice as many as readers are held, and on a GPU one more a reader.
        num_readers: Threads.

    Raises:
        StartupError: A file cannot be read, or has changed.
        torch.OutOfMemoryError: No room for the buffers on the device.
    """
    parts = [part for name, slot in slots.items() for part in split(sources[name], slot, chunk_bytes)]
    largest_bytes = max(part.num_bytes for part in parts)
    chunks = deque(parts)

    def run_reader() -> tuple[float, float]:
        try:
            lane = _CudaLane(device, largest_bytes) if device.type == "cuda" else _HostLane(largest_bytes)
            return _move(chunks, lane)
        except BaseException:
            chunks.clear()  # the others need not go on
            raise

    if device.type == "cuda":
        torch.cuda.synchronize(device)  # the readers' streams do not wait for what is queued on this one
    num_readers = min(num_readers, len(parts))
    with ThreadPoolExecutor(num_readers, "weights") as pool:
        readers = [pool.submit(run_reader) for _ in range(num_readers)]
    times = [reader.result() for reader in readers]
    read_s, put_s = (sum(column) / num_readers for column in zip(*times, strict=True))
    return Uploaded(sum(part.num_bytes for part in parts), read_s, put_s)


class _HostLane:
    """One reader's way to the weights where these are on the host."""

    def __init__(self, num_bytes: int) -> None:
        self._buffer_N = torch.empty(num_bytes, dtype=torch.uint8)

    def buffer(self) -> torch.Tensor:
        """The host bytes to read the next chunk into; waits until the device has taken what was in them."""
        return self._buffer_N

    def put(self, chunk: Chunk) -> None:
        """Send on the chunk that was read into the buffer."""
        chunk.put(self._buffer_N)

    def finish(self) -> None:
        """Wait until all is in place."""


class _CudaLane:
    """The same where they are on a GPU. Made and used in its reader's thread."""

    def __init__(self, device: torch.device, num_bytes: int) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._stream):
            self._staging_N = torch.empty(num_bytes, dtype=torch.uint8, device=device)
        self._buffers = [self._buffer_and_event(num_bytes) for _ in range(BUFFERS_PER_READER)]
        self._turn = 0

    @staticmethod
    def _buffer_and_event(num_bytes: int) -> tuple[torch.Tensor, torch.cuda.Event]:
        """A pinned buffer, and what tells that the device has taken its content; it has at first."""
        buffer_N = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
        return buffer_N, torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]

    def buffer(self) -> torch.Tensor:
        buffer_N, taken = self._buffers[self._turn]
        taken.synchronize()
        return buffer_N

    def put(self, chunk: Chunk) -> None:
        buffer_N, taken = self._buffers[self._turn]
        self._turn = (self._turn + 1) % BUFFERS_PER_READER
        with torch.cuda.stream(self._stream):
            # straight into a slot of strided rows PyTorch would make such a copy itself, at each call
            self._staging_N[: chunk.num_bytes].copy_(buffer_N[: chunk.num_bytes], non_blocking=True)
            taken.record(self._stream)
            # one staging buffer is enough: the stream keeps the order
            chunk.put(self._staging_N)

    def finish(self) -> None:
        self._stream.synchronize()


def _move(chunks: deque[Chunk], lane: _HostLane | _CudaLane) -> tuple[float, float]:
    """Move chunks until there are none; returns the seconds for reading and those for the rest."""
    read_s = 0.0
    started_s = time.monotonic()
    try:
        while chunk := _next(chunks):
            buffer_N = lane.buffer()
            begun_s = time.monotonic()
            chunk.read(buffer_N)
            read_s += time.monotonic() - begun_s
            lane.put(chunk)
    finally:
        # also after an error: the device may not write into memory that is given back
        lane.finish()
    return read_s, time.monotonic() - started_s - read_s


def _next(chunks: deque[Chunk]) -> Chunk | None:
    try:
        return chunks.popleft()
    except IndexError:
        return None
