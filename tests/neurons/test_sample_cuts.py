"""Parts of a recorded step: their losses and gradients sum up to the whole one's, or the step stays whole."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_topo._tape import StepRecorder, Tape, accepted, tape_loss
from lightning_topo._tape.names import named_tensors
from lightning_topo.neurons._sample_cuts import SampleCuts
from tests.tape.steps import Attention, Recurrent, batch, labels, mlp


def recorded(net: nn.Module, loss) -> Tape:
    recorder = StepRecorder()
    recorder.begin(net)
    recorder.loss(loss())
    [tape] = recorder.end()
    return accepted(tape)


def masked(n: int, *shape: int) -> Tensor:
    """Classes, of which ever more are left out."""
    y = labels(1, n * shape[0], 3).view(n, *shape)
    return y.masked_fill(torch.arange(shape[0]) > torch.arange(n)[:, None] % shape[0], -100)


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


TOKENS = labels(0, 72, 3).view(12, 6)
MASKED = masked(12, 6)  # as a data set holds them: masking is no part of the step


def by_hand(net: nn.Module) -> Tensor:
    each = F.cross_entropy(net(TOKENS).flatten(0, 1), TOKENS.flatten(), reduction="none").view(12, 6)
    return (each * (MASKED >= 0)).sum() / (MASKED >= 0).sum()


CUT = {
    "mean": (lambda: mlp(5, 8, 3), lambda net: F.cross_entropy(net(batch(0, 12, 5)), labels(0, 12))),
    "sum": (lambda: mlp(5, 8, 3), lambda net: F.mse_loss(net(batch(0, 12, 5)), batch(1, 12, 3), reduction="sum") / 36),
    "weight decay": (
        lambda: mlp(5, 8, 3),
        lambda net: net(batch(0, 12, 5)).square().mean() + 0.1 * net[0].weight.square().sum(),
    ),
    "dropout": (
        lambda: nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3)),
        lambda net: F.cross_entropy(net(batch(0, 12, 5)), labels(0, 12)),
    ),
    "convolutional": (convolutional, lambda net: F.cross_entropy(net(batch(0, 12, 1, 6, 6)), labels(0, 12))),
    "recurrent": (lambda: Recurrent(width=4), lambda net: F.cross_entropy(net(batch(0, 12, 4, 5)), labels(0, 12))),
    "attention": (Attention, lambda net: F.cross_entropy(net(TOKENS).flatten(0, 1), TOKENS.flatten())),
    "masked": (Attention, lambda net: F.cross_entropy(net(TOKENS).flatten(0, 1), MASKED.flatten())),
    "masked by hand": (Attention, by_hand),
}


@pytest.mark.parametrize("kind", CUT)
def test_the_gradients_of_the_parts_sum_up_to_the_whole_one(kind: str) -> None:
    torch.manual_seed(0)
    make, loss = CUT[kind]
    net = make()
    tape = recorded(net, lambda: loss(net))
    parts = SampleCuts()(tape, 5, named_tensors(net), torch.float32)
    assert [part.n_samples for _, part in parts] == [4, 4, 4]
    params = list(net.parameters())

    def gradient(tape: Tape) -> list[Tensor]:
        value = tape_loss(tape, named_tensors(net))
        return list(torch.autograd.grad(value, params, allow_unused=True, materialize_grads=True))

    whole, pieces = gradient(tape), [gradient(part) for _, part in parts]
    for k, truth in enumerate(whole):
        found = sum(weight * piece[k] for (weight, _), piece in zip(parts, pieces, strict=True))
        torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-6)


def normalised() -> nn.Module:
    """At its beginning the loss is the same for all data: samples seem not to meet."""
    net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    nn.init.zeros_(net[3].weight)
    nn.init.zeros_(net[3].bias)
    return net


def contrastive(net: nn.Module) -> Tensor:
    z = F.normalize(net(batch(0, 12, 5)))
    return F.cross_entropy(z @ z.T - 9 * torch.eye(12), torch.arange(12).roll(1))


@pytest.mark.parametrize(
    ("make", "loss"),
    [
        (normalised, lambda net: F.cross_entropy(net(batch(0, 12, 5)), labels(0, 12))),
        (lambda: mlp(5, 8, 3), contrastive),
        (lambda: mlp(5, 8, 3), lambda net: net(batch(0, 12, 5)).std(0).sum()),
    ],
)
def test_where_samples_meet_the_step_stays_whole(make, loss) -> None:
    torch.manual_seed(0)
    net = make()
    tape = recorded(net, lambda: loss(net))
    assert SampleCuts()(tape, 4, named_tensors(net), torch.float32) == ((1.0, tape),)


def test_one_look_at_a_program_serves_its_next_steps() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    tapes = [recorded(net, lambda k=k: net(batch(k, 12, 5)).square().mean()) for k in range(3)]
    cuts = SampleCuts()
    for tape in tapes:
        parts = cuts(tape, 6, named_tensors(net), torch.float32)
        assert cuts(tape, 6, named_tensors(net), torch.float32) is parts
        assert len(parts) == 2
    assert len(cuts._axes) == 1
    cuts.forget_all_but(tapes[1:])
    assert {key[0] for key in cuts._known} == {id(tape) for tape in tapes[1:]}
