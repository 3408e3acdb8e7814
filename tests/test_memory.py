"""Where tensors that are rarely used are kept, and work beside the training."""

import math
import threading

import pytest
import torch

from lightning_topo._memory import (
    IN_CACHE,
    aside,
    in_parts,
    is_out_of_memory,
    largest_difference,
    largest_entry,
    resting_device,
)

GPU = torch.device("cuda:0")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_what_an_allocator_refuses_is_known(error, expected):
    assert is_out_of_memory(error) == expected


@pytest.mark.parametrize(
    ("n_bytes", "peak", "free", "stays"),
    [
        (10, 100, 1000, True),  # a tenth of the peak
        (11, 100, 1000, False),
        (10, 100, 39, False),  # more than a quarter of what is free
        (math.inf, 1e12, 1e12, False),
    ],
)
def test_on_a_gpu_what_is_small_beside_the_training_stays(monkeypatch, n_bytes, peak, free, stays):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peak)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**12))
    assert resting_device(GPU, n_bytes) == (GPU if stays else torch.device("cpu"))


def test_where_memory_is_the_host_s_it_stays_there():
    assert [resting_device(torch.device(kind), 10**15).type for kind in ("cpu", "mps", "meta")] == [
        "cpu",
        "mps",
        "meta",
    ]


def test_work_aside_runs_in_another_thread():
    found = []

    def work(context):
        with context:
            found.append(float(torch.ones(3).sum()))

    thread = threading.Thread(target=work, args=(aside(torch.device("cpu")),))
    thread.start()
    thread.join()
    assert found == [3.0]


LAYOUTS = {
    "rows": torch.randn(300, 400),
    "columns": torch.randn(400, 300).T,
    "channels last": torch.randn(70, 60, 7, 7).to(memory_format=torch.channels_last),
    "every second row": torch.randn(600, 400)[::2],
    "one row many times": torch.randn(400).expand(300, 400),
    "one number": torch.tensor(2.0),
    "none": torch.empty(0, 3),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_hold_the_same_entries_of_each_tensor_once(layout):
    tensor = LAYOUTS[layout]
    place = torch.arange(float(tensor.numel())).reshape(tensor.shape)
    parts = list(in_parts(tensor, place))
    assert all(len(part) <= IN_CACHE for part, _ in parts)
    found = torch.cat([at for _, at in parts])
    assert torch.equal(found.sort().values, place.flatten())
    assert torch.equal(torch.cat([part for part, _ in parts]), tensor.flatten()[found.long()])


@pytest.mark.parametrize("layout", set(LAYOUTS) - {"every second row", "one row many times"})
def test_parts_of_what_lies_close_are_its_own_memory(layout):
    tensor = LAYOUTS[layout].clone()
    for (part,) in in_parts(tensor):
        part.zero_()
    assert not tensor.any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_largest_difference_is_that_of_the_whole(layout):
    tensor = LAYOUTS[layout].double()
    other = torch.randn(tensor.shape, dtype=torch.float64)
    expected = float((tensor - 0.3 * other).abs().max()) if tensor.numel() else 0.0
    assert largest_difference(tensor, other, 0.3) == pytest.approx(expected, rel=1e-14)


def test_of_what_is_no_number_there_is_no_largest_difference():
    tensor = torch.zeros(2 * IN_CACHE)
    tensor[3] = math.nan
    assert math.isnan(largest_difference(tensor, torch.zeros_like(tensor), 1.0))
    assert largest_difference(torch.full((3,), math.inf), torch.zeros(3), 1.0) == math.inf
    assert largest_entry(torch.tensor([3 + 4j])) == 5.0
