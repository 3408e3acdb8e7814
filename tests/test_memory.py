"""Where tensors that are rarely used are kept, and work beside the training."""

import math
import threading

import pytest
import torch

from lightning_topo._memory import aside, is_out_of_memory, resting_device

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
