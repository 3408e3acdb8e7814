"""The loss of the training on recorded samples, at the present parameters, with the training left as it was."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from lightning_topo._tape import CannotReplay, StepRecorder, Tape, accepted
from lightning_topo._watch.training_loss import ENOUGH_SAMPLES, TrainingLoss
from lightning_topo.probes import ProbeUnavailable
from tests.watch.driving import training_of


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Dropout(0.3), nn.Linear(5, 2))


def samples(seed: int, n: int):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=generator), torch.randint(2, (n,), generator=generator)


def recorded(model, *losses, n_samples=None):
    recorder = StepRecorder()
    recorder.begin(model)
    for loss in losses:
        recorder.loss(loss(), n_samples=n_samples)
        recorder.resume()
    return [accepted(tape) for tape in recorder.end()]


def of_batch(model, seed, n):
    x, y = samples(seed, n)
    return recorded(model, lambda: F.cross_entropy(model(x), y))


def test_it_is_the_modules_own_loss_at_the_present_parameters_averaged_over_samples():
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    loss = TrainingLoss(training_of(model), 0)
    for seed, n in ((1, 6), (2, 10)):
        loss.keep(of_batch(model, seed, n), None)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    x, y = (torch.cat(both) for both in zip(samples(1, 6), samples(2, 10), strict=True))
    with loss(None) as evaluate:
        found = evaluate()
        assert found.requires_grad
    torch.testing.assert_close(found, F.cross_entropy(model(x), y))


def test_the_newest_tapes_with_enough_samples_are_kept_and_no_more():
    model = nn.Linear(3, 2)
    loss = TrainingLoss(training_of(model), 0)
    assert loss.n_wanted == 0  # nothing is known of how large a tape is
    wanted, held = [], []
    for seed in range(6):
        loss.keep(of_batch(model, seed, 100), None)
        wanted.append(loss.n_wanted)
        with loss(None) as evaluate:
            held.append(evaluate.n_samples)
    assert held == [100, 200, 300, 300, 300, 300]
    assert wanted == [2, 1, 0, 0, 0, 0]
    assert held[-1] - 100 < ENOUGH_SAMPLES <= held[-1]
    x, y = (torch.cat(both) for both in zip(*(samples(seed, 100) for seed in (3, 4, 5)), strict=True))
    with loss(None) as evaluate:
        torch.testing.assert_close(evaluate(), F.cross_entropy(model(x), y))


def test_of_several_losses_in_a_step_each_has_enough_samples():
    model = nn.Linear(3, 2)
    loss = TrainingLoss(training_of(model), 0)
    for seed in range(6):
        x, y = samples(seed, 128)
        both = (lambda x=x, y=y: F.cross_entropy(model(x), y), lambda x=x: model(x).square().mean())
        loss.keep(recorded(model, *both), None)
    with loss(None) as evaluate:
        by_kind = {}
        for tape in evaluate.tapes:
            kind = tape.calls[-1].name
            by_kind[kind] = by_kind.get(kind, 0) + tape.n_samples
    assert len(by_kind) == 2
    assert all(ENOUGH_SAMPLES <= n < 2 * ENOUGH_SAMPLES for n in by_kind.values())


def test_losses_of_one_step_count_alike_however_large_its_batch():
    model = nn.Linear(3, 2)
    loss = TrainingLoss(training_of(model), 0)
    for seed in range(3):
        x, y = samples(seed, ENOUGH_SAMPLES)
        both = (lambda x=x, y=y: F.cross_entropy(model(x), y), lambda x=x: model(x).square().mean())
        loss.keep(recorded(model, *both), None)
    with loss(None) as evaluate:
        assert len(evaluate.tapes) == 2
        torch.testing.assert_close(evaluate(), (both[0]() + both[1]()) / 2)


def test_tapes_hold_no_parameters_of_their_own():
    model = nn.Linear(3, 2)
    loss = TrainingLoss(training_of(model), 0)
    loss.keep(of_batch(model, 0, 4), None)
    with loss(None) as evaluate:
        assert [tape.values for tape in evaluate.tapes] == [{}]


def test_tapes_hold_no_parameters_below_a_checkpoint_wrapper_either():
    model = nn.Sequential(checkpoint_wrapper(nn.Linear(3, 8)), nn.Tanh(), nn.Linear(8, 2))
    loss = TrainingLoss(training_of(model), 0)
    x, y = samples(0, 16)
    loss.keep(recorded(model, lambda: F.cross_entropy(model(x.requires_grad_()), y)), None)
    assert loss.obstacle == ""
    assert not any(tape.values for tape in loss._tapes)


@pytest.mark.parametrize("change", ["renamed", "wider"])
def test_tapes_that_read_what_the_module_has_no_more_are_let_go(change):
    model = net()
    loss = TrainingLoss(training_of(model), 0)
    for seed in range(2):
        loss.keep(of_batch(model, seed, 8), None)
    if change == "renamed":
        torch.nn.utils.prune.l1_unstructured(model[0], "weight", 0.5)
    else:
        model[3] = nn.Linear(5, 4)
    with pytest.raises(CannotReplay, match="other parameters now"), loss(None):
        pass
    loss.keep(of_batch(model, 2, 8), None)
    with loss(None) as evaluate:
        assert evaluate().requires_grad
    assert [tape.n_samples for tape in loss._tapes] == [8]


def test_where_no_step_can_be_replayed_it_says_why_and_what_to_do():
    model = net()
    loss = TrainingLoss(training_of(model), 0)

    def refusal():
        with pytest.raises(ProbeUnavailable, match="cannot be replayed") as raised, loss(None):
            pass
        assert "loss_fn" in raised.value.remedy
        return str(raised.value)

    assert "no step was recorded yet" in refusal()
    loss.keep([], None)
    assert "the step had no loss to follow" in refusal()
    loss.keep([Tape((), (), {}, {}, {}, {}, (), (), {}, obstacle="too many calls")], None)
    assert "too many calls" in refusal()
    assert loss.n_wanted == 0
    loss.keep(of_batch(model, 0, 4), None)
    loss.keep([Tape((), (), {}, {}, {}, {}, (), (), {}, obstacle="too many calls")], None)
    with loss(None) as evaluate:  # one refused step does not harm those before it
        assert evaluate.n_samples == 4
    loss.refuse("the module is compiled")
    assert "the module is compiled" in refusal()


def test_a_loss_of_the_users_runs_on_the_last_batch_and_leaves_no_trace():
    model = net()
    loss = TrainingLoss(training_of(model), 0)
    batch = samples(3, 8)
    loss.keep([], batch)  # no tape is needed
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()

    def own(module, given):
        assert given is batch
        return F.cross_entropy(module(given[0]), given[1])

    values = []
    for _ in range(2):
        with loss(own) as evaluate:
            values.append(evaluate())
            values[-1].backward(inputs=[model[0].weight])
        model.zero_grad()
    assert torch.equal(*values)  # the same masks
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
