"""How many samples of a step the proof of its neurons runs on."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_topo._tape import StepRecorder, replay
from lightning_topo.neurons._fewer_samples import with_fewer_samples
from lightning_topo.neurons._tape_coupling import couple
from tests.tape.steps import Attention, batch, labels, mlp


def test_attention_and_dropout_run_on_fewer_samples() -> None:
    torch.manual_seed(0)
    net, recorder, x = Attention(0.1), StepRecorder(), labels(0, 16 * 7, 11).view(16, 7)
    recorder.begin(net)
    recorder.loss(F.cross_entropy(net(x).flatten(0, 1), x.flatten()), n_samples=16)
    [tape] = recorder.end()
    coupling = couple([tape])
    cut = with_fewer_samples(tape, coupling.trace, coupling.tensors[0])
    assert cut.n_samples == 2
    assert {len(value) for value in cut.draws.values()} == {2}
    assert bool(torch.isfinite(replay(cut, {})[0]))


def test_a_mean_over_fewer_samples_is_the_mean_over_these() -> None:
    net, recorder, x, y = mlp(5, 8, 3), StepRecorder(), batch(0, 64, 5), labels(0, 64)
    recorder.begin(net)
    recorder.loss(F.cross_entropy(net(x), y))
    [tape] = recorder.end()
    coupling = couple([tape])
    cut = with_fewer_samples(tape, coupling.trace, coupling.tensors[0])
    assert cut.n_samples == 4
    assert torch.allclose(replay(cut, {})[0], F.cross_entropy(net(x[:4]), y[:4]))


@pytest.mark.parametrize(("size", "kept"), [(1, 8), (2, 4), (4, 2), (16, 2)])
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_needs_entries_not_samples_and_none_by_what_it_has_gathered(
    size: int, kept: int, training: bool
) -> None:
    torch.manual_seed(0)
    net, recorder = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)), StepRecorder()
    net.train(training)
    x = torch.randn(16, 3, size, size)
    recorder.begin(net)
    recorder.loss(net(x).square().mean(), n_samples=16)
    [tape] = recorder.end()
    coupling = couple([tape])
    assert with_fewer_samples(tape, coupling.trace, coupling.tensors[0]).n_samples == (kept if training else 2)


def test_of_a_heavy_step_batch_norm_keeps_two_samples(monkeypatch) -> None:
    monkeypatch.setattr("lightning_topo.neurons._fewer_samples.HEAVY_BYTES", 1)
    for training in (True, False):
        net, recorder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)), StepRecorder()
        net.train(training)
        recorder.begin(net)
        recorder.loss(net(torch.randn(4, 3, 16, 16)).square().mean(), n_samples=4)
        [tape] = recorder.end()
        coupling = couple([tape])
        assert with_fewer_samples(tape, coupling.trace, coupling.tensors[0]).n_samples == 2
