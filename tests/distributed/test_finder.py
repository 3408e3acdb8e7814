"""The learning rate finder in two processes that train together: it finds what one does with the same batches."""

import json

import pytest
from torch import distributed

from lightning_topo import Sharpness
from tests import warm
from tests.distributed.finder import BATCH, finder, numbers
from tests.distributed.models import Net, loader, trainer
from tests.distributed.processes import wait

pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="torch without torch.distributed")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What each process saw; both are killed where they take too long."""
    out = tmp_path_factory.mktemp("pair")
    logs = [out / f"log-{rank}.txt" for rank in (0, 1)]
    processes = [warm.start("tests.distributed.finder", out, rank, log=log) for rank, log in enumerate(logs)]
    codes = wait(processes, 150)
    assert codes == [0, 0], "\n".join(log.read_text()[-3000:] for log in logs)
    return [json.loads((out / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """The sweep of one process that takes two batches for each step."""
    alone, folder = finder(sharpness=Sharpness()), tmp_path_factory.mktemp("single")
    trainer("single", folder, [alone], max_epochs=1, accumulate_grad_batches=2).fit(Net(), loader(BATCH))
    return alone.sweep


def test_both_sweep_as_one_process_that_takes_the_batches_of_both(pair, single):
    assert pair[0]["sweep"] == pair[1]["sweep"]
    for name, values in numbers(single).items():
        assert pair[0]["sweep"][name] == pytest.approx(values, rel=1e-4), name
    losses = single.losses
    assert len(set(losses)) == len(losses) > 5


def test_both_train_with_what_was_found(pair, single):
    assert pair[0]["suggestion"] == pytest.approx(single.suggestion)
    for process in pair:
        assert process["lr"] == [pair[0]["suggestion"]] * 2


def test_training_is_bitwise_the_same_with_and_without(pair):
    for process in pair:
        plain, swept = process["weights"]
        assert plain == swept == pair[0]["weights"][0]


def test_sharded_parameters_are_refused_by_both(pair):
    for process in pair:
        assert "needs whole neurons on every device, and ModelParallelStrategy shards them" in process["refused"]
