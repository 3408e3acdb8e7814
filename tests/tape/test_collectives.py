"""Two processes whose losses need each other: each replays its own tape, and sends nothing."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_topo._tape import StepRecorder, Tape, accepted, replay
from lightning_topo.neurons import groups_from_tapes
from tests import warm
from tests.tape.steps import batch, mlp


def contrastive(net: nn.Module, rank: int) -> Tensor:
    """Every sample against those of all processes, gathered with their gradients."""
    from torch.distributed.nn.functional import all_gather

    z = F.normalize(net(batch(rank, 6, 5)), dim=1)
    every = torch.cat(all_gather(z))
    return F.cross_entropy(z @ every.T / 0.2, torch.arange(6) + 6 * rank)


def gathered_plainly(net: nn.Module, rank: int) -> Tensor:
    """As the losses that put their own part, with its gradient, back among the gathered ones."""
    z = F.normalize(net(batch(rank, 6, 5)), dim=1)
    parts = [torch.zeros_like(z) for _ in range(2)]
    dist.all_gather(parts, z.detach())
    parts[rank] = z
    return (z @ torch.cat(parts).T).logsumexp(1).mean()


def gathered_into_one(net: nn.Module, rank: int) -> Tensor:
    z = F.normalize(net(batch(rank, 6, 5)), dim=1)
    every = z.new_empty(12, z.shape[1])
    dist.all_gather_into_tensor(every, z.detach())
    return (z @ every.T).logsumexp(1).mean()


def synchronised_norm(net: nn.Module, rank: int) -> Tensor:
    """Hidden units normalised by statistics of all processes, as SyncBatchNorm does."""
    from torch.distributed.nn.functional import all_reduce

    hidden = net[0](batch(rank, 6, 5))
    sums = all_reduce(torch.stack([hidden.sum(0), hidden.square().sum(0)])) / 12
    scaled = (hidden - sums[0]) / (sums[1] - sums[0].square() + 1e-3).sqrt()
    return net[2](torch.tanh(scaled)).square().mean()


def summed_later(net: nn.Module, rank: int) -> Tensor:
    """An asynchronous sum, waited for after other work."""
    out = net(batch(rank, 6, 5))
    total = out.detach().sum(0)
    work = dist.all_reduce(total, async_op=True)
    other = out.square().mean()
    assert work is not None
    work.wait()
    return other + (out * total).mean()


LOSSES = {
    loss.__name__: loss for loss in (contrastive, gathered_plainly, gathered_into_one, synchronised_norm, summed_later)
}


COMPARED = ("contrastive", "gathered_plainly", "gathered_into_one")


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    try:
        tapes: dict[str, tuple[Tape, Tensor]] = {}
        for name, loss in LOSSES.items():
            torch.manual_seed(0)
            net = mlp(5, 8, 4)
            plain = loss(net, rank)
            recorder = StepRecorder()
            recorder.begin(net)
            value = loss(net, rank)
            recorder.loss(value)
            value.backward()
            [tape] = recorder.end()
            tapes[name] = tape, torch.equal(plain, value)
    finally:
        dist.destroy_process_group()
    for name, (tape, same) in tapes.items():  # there is nobody left to send anything to
        tape = accepted(tape)
        values = replay(tape, {}) if not tape.obstacle else []
        groups = groups_from_tapes([tape]).groups
        found[name] = {
            "same": same,
            "obstacle": tape.obstacle,
            "error": [float((a - b).abs().max()) for a, b in zip(values, tape.recorded, strict=False)],
            "groups": [(group.name, group.n, group.status, group.reason) for group in groups],
        }
    torch.save(found, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("collectives")
    code = f"import sys; from {__name__} import process; process(int(sys.argv[1]), sys.argv[2])"
    workers = [warm.start(code, rank, folder, log=folder / f"log-{rank}.txt") for rank in range(2)]
    assert [worker.wait(120) for worker in workers] == [0, 0], (folder / "log-0.txt").read_text()
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", LOSSES)
def test_losses_over_two_processes_are_replayed_alone(results: list[dict], name: str) -> None:
    for found in results:
        assert found[name]["same"]
        assert found[name]["obstacle"] == ""
        assert max(found[name]["error"]) < 1e-5
        # Features compared by inner products over them are neurons too: summed over, their order is nobody's.
        compared = [("2", 4, "verified", "")] if name in COMPARED else []
        assert found[name]["groups"] == [("0", 8, "verified", ""), *compared]
