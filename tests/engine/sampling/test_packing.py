"""Arrays packed into one buffer come out as they went in."""

import numpy as np
import pytest
import torch

from gptj_serve.engine.sampling.packing import Layout, PickedRows, Upload

CPU = torch.device("cpu")


def test_arrays_of_all_types_come_out_as_they_went_in() -> None:
    upload = Upload()
    arrays = [
        ([1, -(2**62), 2**62], torch.int64),
        ([0.1, -1e300, float("inf")], torch.float64),
        ([0.1, 1e-42, 3.0], torch.float32),
        ([], torch.float32),
        (np.arange(5), torch.int64),
    ]
    fields = [upload.add(values, dtype) for values, dtype in arrays]
    words_W = upload.to(CPU)
    for field, (values, dtype) in zip(fields, arrays, strict=True):
        got = field.of(words_W)
        assert got.dtype == dtype
        assert torch.equal(got, torch.tensor(list(values), dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int32, torch.int64])
def test_arrays_do_not_overlap(dtype: torch.dtype) -> None:
    layout = Layout()
    fields = [layout.add(num, dtype) for num in (1, 3, 0, 4, 7)]
    words_W = torch.zeros(layout.num_words, dtype=torch.int64)
    for number, field in enumerate(fields):
        field.of(words_W).fill_(number)
    assert [field.of(words_W).tolist() for field in fields] == [[0], [1] * 3, [], [3] * 4, [4] * 7]


def test_some_rows_are_picked_and_put_back() -> None:
    upload = Upload()
    some, all_rows = PickedRows.of([0, 2], 3, upload), PickedRows.of([0, 1, 2], 3, upload)
    words_W = upload.to(CPU)
    batch = torch.arange(6).view(3, 2)
    assert some.select(batch, words_W).tolist() == [[0, 1], [4, 5]]
    assert some.replace(batch, torch.full((2, 2), 9), words_W).tolist() == [[9, 9], [2, 3], [9, 9]]
    assert all_rows.select(batch, words_W) is batch
    assert batch.tolist() == [[0, 1], [2, 3], [4, 5]]
    rows = torch.zeros(3, 2)
    assert all_rows.replace(batch, rows, words_W) is rows
