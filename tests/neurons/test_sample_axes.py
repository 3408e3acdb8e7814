"""Which axes count samples: a part of a step is the step on these samples, or the step stays whole."""

import pytest
import torch
from torch import Tensor, nn

from lightning_topo._tape import StepRecorder, Tape, replay
from lightning_topo.neurons import groups_from_tapes
from lightning_topo.neurons._fewer_samples import with_fewer_samples
from lightning_topo.neurons._sample_axes import GUESSES, CannotCut, Guess, SampleAxes
from lightning_topo.neurons._tape_coupling import couple
from tests.tape.steps import batch, mlp


class Masked(nn.Module):
    """Encodes a random part of each sample's tokens, as a masked autoencoder does, and fills in a learned one."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out, self.missing = nn.Linear(5, 8), nn.Linear(8, 5), nn.Parameter(torch.randn(1, 1, 5))

    def forward(self, x: Tensor) -> Tensor:
        n, times, width = x.shape
        kept = torch.rand(n, times).argsort(dim=1)[:, : times // 2]
        seen = x.gather(1, kept.unsqueeze(-1).repeat(1, 1, width))
        return torch.cat([self.out(self.hidden(seen).relu()), self.missing.repeat(n, times - kept.shape[1], 1)], dim=1)


class AsManyPositions(nn.Module):
    """Has as many positions, and as many states, as there are samples."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(5, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        decay = -torch.arange(1, x.shape[1] + 1, dtype=x.dtype).log()
        state = torch.zeros(len(x), x.shape[1], 5)
        for _ in range(2):
            state = state * decay[None, :, None].exp() + self.out(self.hidden(x).relu())
        mask = (torch.arange(x.shape[1])[:, None] >= torch.arange(x.shape[1])).expand(len(x), -1, -1)
        return state.transpose(1, 2) @ mask.to(x.dtype)


@pytest.mark.parametrize("kind", [Masked, AsManyPositions])
def test_what_is_as_long_as_the_samples_is_told_from_them(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    net, recorder, x = kind(), StepRecorder(), batch(0, 16, 16, 5)
    recorder.begin(net)
    recorder.loss(net(x).square().mean())
    [tape] = recorder.end()
    coupling = couple([tape])
    cut = with_fewer_samples(tape, coupling.trace, coupling.tensors[0], GUESSES[0])
    assert cut.n_samples == 2
    assert bool(torch.isfinite(replay(cut, {})[0]))
    assert [group.status for group in groups_from_tapes([tape]).groups] == ["verified"]


def recorded(net: nn.Module, loss, n_samples: int | None = None) -> Tape:
    recorder = StepRecorder()
    recorder.begin(net)
    recorder.loss(loss(), n_samples=n_samples)
    [tape] = recorder.end()
    assert tape.obstacle == ""
    return tape


def axes_of(tape: Tape) -> SampleAxes:
    coupling = couple([tape])
    return SampleAxes.of(tape, coupling.trace, coupling.tensors[0])


PARTS = {
    "perceptron": (lambda: mlp(5, 8, 3), (12, 5), lambda out: out.square().mean()),
    "tokens": (
        lambda: nn.Sequential(nn.Linear(5, 8), nn.Flatten(0, 1), nn.Linear(8, 3)),
        (12, 4, 5),
        lambda out: out.exp().mean(),
    ),
    "images": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(64, 3)),
        (12, 2, 6, 6),
        lambda out: out.square().mean(),
    ),
    "pairs of samples": (lambda: mlp(5, 8, 3), (12, 5), lambda out: (out @ out.T).mean()),
}


@pytest.mark.parametrize("kind", PARTS)
@pytest.mark.parametrize(("start", "stop"), [(0, 3), (4, 9), (11, 12)])
def test_a_part_is_the_step_on_these_samples(kind: str, start: int, stop: int) -> None:
    torch.manual_seed(0)
    make, shape, loss = PARTS[kind]
    net, x = make(), batch(0, *shape)
    tape = recorded(net, lambda: loss(net(x)))
    part = axes_of(tape).part(tape, start, stop, Guess.NONE)
    assert part.n_samples == stop - start
    torch.testing.assert_close(replay(part, {})[0], loss(net(x[start:stop])))


def test_a_part_keeps_the_masks_of_its_samples() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    tape = recorded(net, lambda: net(batch(0, 12, 5)).sum())
    axes = axes_of(tape)
    parts = [replay(axes.part(tape, at, at + 4, Guess.NONE), {})[0] for at in (0, 4, 8)]
    torch.testing.assert_close(torch.stack(parts).sum(), tape.recorded[0])


def test_the_axes_of_one_step_serve_for_the_next_of_its_program_and_for_no_other() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    first, second = (recorded(net, lambda k=k: net(batch(k, 12, 5)).sum()) for k in (0, 1))
    axes = axes_of(first)
    assert axes.fits(second)
    parts = [replay(axes.part(second, at, at + 6, Guess.NONE), {})[0] for at in (0, 6)]
    torch.testing.assert_close(torch.stack(parts).sum(), second.recorded[0])
    assert not axes.fits(recorded(net, lambda: net(batch(0, 10, 5)).sum()))
    assert not axes.fits(recorded(net, lambda: net(batch(0, 12, 5)).mean()))
    assert not axes.fits(recorded(net, lambda: net[2](net[0](batch(0, 12, 5))).sum()))


def test_where_no_axis_counts_samples_a_step_cannot_be_cut() -> None:
    net = mlp(5, 8, 3)
    tape = recorded(net, lambda: net[0].weight.square().sum())
    with pytest.raises(CannotCut, match="no axis of samples"):
        axes_of(tape).part(tape, 0, 1, Guess.NONE)
    assert with_fewer_samples(tape, couple([tape]).trace, {}) is tape


def test_a_table_of_weights_as_long_as_the_data_is_not_taken_for_it() -> None:
    """One trained row for each sample: cutting would leave rows without samples."""
    torch.manual_seed(0)
    net, table = mlp(5, 8, 3), nn.Parameter(torch.randn(12, 3))
    whole = nn.ParameterDict({"table": table})
    whole.net = net
    tape = recorded(whole, lambda: (net(batch(0, 12, 5)) * table).square().mean())
    with pytest.raises(CannotCut):
        axes_of(tape).part(tape, 0, 4, Guess.NONE)
