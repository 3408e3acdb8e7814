"""Steps of tensor parallel, here of one process; with two `tests/distributed` replays them."""

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from lightning_topo._tape import StepRecorder, replay
from lightning_topo._tape.foreign import on_this_process


@pytest.fixture
def mesh(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def net(mesh, **options):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(3, 6), nn.Dropout(0.5), nn.Tanh(), nn.Linear(6, 2))
    return parallelize_module(layers, mesh, {"0": ColwiseParallel(), "3": RowwiseParallel(**options)})


def parts(model):
    return {name: p.to_local().detach() for name, p in model.named_parameters()}


def recorded(model, loss_of):
    recorder = StepRecorder()
    with torch.no_grad():
        recorder.begin({}, opens=True)
        for name, p in model.named_parameters():
            recorder.name(name, p.to_local(), gathered=True, keep_value=False)
    loss = loss_of(model)
    recorder.loss(loss)
    loss.backward()
    [tape] = recorder.end()
    return tape, loss


@pytest.mark.parametrize("options", [{}, {"use_local_output": False}])
def test_the_local_parts_of_a_step_are_recorded(mesh, options):
    model, x = net(mesh, **options), torch.randn(5, 3)
    tape, loss = recorded(model, lambda model: model(x).square().mean())
    assert tape.obstacle == ""
    assert {name for names in tape.names.values() for name in names} == set(parts(model))
    assert not any(constant.shape == (6, 3) for constant in tape.constants.values())
    with torch.no_grad():
        assert replay(tape, parts(model))[0].item() == pytest.approx(on_this_process(loss).item(), rel=1e-6)
        halved = {name: 0.5 * part for name, part in parts(model).items()}
        inner = tape.draws  # the dropout falls as it did
        assert len(inner) == 1
        assert replay(tape, halved)[0].item() != pytest.approx(on_this_process(loss).item(), rel=0.01)


def test_the_training_is_as_without(mesh):
    x = torch.randn(5, 3)
    one, other = net(mesh), net(mesh)
    torch.manual_seed(1)
    recorded(one, lambda model: model(x).square().mean())
    torch.manual_seed(1)
    other(x).square().mean().backward()
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine.grad.to_local(), theirs.grad.to_local())


def test_a_loss_that_is_spread_over_processes_is_refused(mesh):
    spread = distribute_tensor(torch.ones(2), mesh, [Shard(0)])
    with pytest.raises(TypeError, match="spread over processes"):
        on_this_process(spread)
    assert on_this_process(distribute_tensor(torch.ones(2), mesh, [Replicate()])).tolist() == [1.0, 1.0]
    plain = torch.ones(())
    assert on_this_process(plain) is plain
