"""The door for loops written by hand: harmless, exact, and closed whatever happens."""

import math
from contextlib import nullcontext

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils import _python_dispatch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from lightning_topo import Distortion, Persistence
from lightning_topo._watch.recording import MOST_LOSSES
from lightning_topo.outputs._gates import StopRules
from tests.callbacks.training import happened
from tests.loops.by_hand import by_step, iterate, train, watching
from tests.loops.loops import GROUPS, Net, batches, layers, sgd

# --- it leaves the training alone -------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [GROUPS, "auto"], ids=["declared", "auto"])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_weights_are_bitwise_those_of_a_training_without_it(tmp_path, accumulate, given):
    class Noisy(Net):
        def __init__(self):
            super().__init__()
            self.net.insert(1, nn.Dropout(0.2))
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x, labels):
            return super().forward(self.norm(x), labels)

    def trained(watched):
        torch.manual_seed(1)
        model = Noisy()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        if watched:
            named = given if isinstance(given, str) else ()
            with watching(model, optimizer, tmp_path, groups=named, probes=None, on_error="warn") as watch:
                train(model, optimizer, watch, epochs=2, lr=0.01, accumulate=accumulate)
        else:
            train(model, optimizer, epochs=2, lr=0.01, accumulate=accumulate)
        return model.state_dict(), optimizer.state_dict()["state"], torch.rand(3)

    plain, watched = trained(watched=False), trained(watched=True)
    assert all(torch.equal(p, watched[0][name]) for name, p in plain[0].items())
    assert all(torch.equal(v, watched[1][k][name]) for k, state in plain[1].items() for name, v in state.items())
    assert torch.equal(plain[2], watched[2])


@pytest.mark.parametrize("updates", [True, False])
def test_a_step_of_more_losses_than_are_recorded_goes_on_as_without(tmp_path, updates):
    """As PPO has it, with an update for each; or with one update for all."""

    def run(watch):
        net, x = layers(), torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
        optimizer = sgd(net, 0.05)
        watch = watching(net, optimizer, tmp_path) if watch else None
        for _ in range(3):
            with watch.step() if watch else nullcontext():
                for k in range(MOST_LOSSES + 4):
                    loss = (net(x) - 0.1 * k).square().mean()
                    (watch.loss(loss) if watch else loss).backward()
                    if updates or k == MOST_LOSSES + 3:
                        optimizer.step()
                        optimizer.zero_grad()
            assert _get_current_dispatch_mode_stack() == []
            assert not _python_dispatch._is_in_torch_dispatch_mode
        if watch:
            watch.close()
            assert len(watch.groups) == 2
        return net.state_dict()

    with_ours = run(watch=True)
    assert all(torch.equal(with_ours[name], tensor) for name, tensor in run(watch=False).items())


def test_no_hook_is_left_behind(tmp_path):
    from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

    before = len(_global_optimizer_pre_hooks), len(_global_optimizer_post_hooks)
    model = Net()
    optimizer = sgd(model, 0.1)
    with watching(model, optimizer, tmp_path) as watch:
        train(model, optimizer, watch)
        assert len(_global_optimizer_pre_hooks) == before[0] + 1
    assert (len(_global_optimizer_pre_hooks), len(_global_optimizer_post_hooks)) == before
    watch.close()  # again: nothing


# --- what a step is ---------------------------------------------------------------------------------------------------


def test_an_iteration_without_an_update_is_no_step(tmp_path):
    model = Net()
    optimizer = sgd(model, 0.1)
    with watching(model, optimizer, tmp_path, probes=[Distortion(every_n_steps=1)]) as watch:
        train(model, optimizer, watch, epochs=2, accumulate=4)
    assert by_step(watch, "distortion") == [1, 1, 2, 2, 3, 3, 4, 4]
    # The undivided loss of the batch that led to the update, as Lightning has it.
    losses = [m.values["loss"] for m in watch.record.measurements if m.probe == "training"]
    fresh, wanted = Net(), []
    optimizer = sgd(fresh, 0.1)
    for _ in range(2):
        for k, batch in enumerate(batches()):
            loss = fresh(**batch)["loss"]
            (loss / 4).backward()
            if k % 4 == 3:
                wanted.append(float(loss.detach()))
                optimizer.step()
                optimizer.zero_grad()
    assert losses == pytest.approx(wanted, rel=1e-6)


def test_a_skipped_update_of_a_scaler_is_no_step_and_scales_do_not_enter_the_loss(tmp_path):
    model = Net()
    optimizer, scaler = sgd(model, 0.1), torch.amp.GradScaler("cpu", init_scale=256.0)
    wanted = []
    with watching(model, optimizer, tmp_path, probes=[Distortion(every_n_steps=1)]) as watch:
        for k, batch in enumerate(batches()):
            with watch.step():
                loss = model(**batch)["loss"]
                scaler.scale(watch.loss(loss)).backward()
                if k == 2:
                    model.net[0].weight.grad[0, 0] = math.inf
                else:
                    wanted.append(float(loss.detach()))
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
    assert by_step(watch, "training") == list(range(1, 8))
    assert [m.values["loss"] for m in watch.record.measurements if m.probe == "training"] == pytest.approx(wanted)


def test_two_optimizers_and_two_losses_are_one_step(tmp_path):
    model = Net()
    halves = [torch.optim.SGD(half.parameters(), lr=0.1) for half in (model.net[:2], model.net[2:])]
    totals = []
    with watching(model, halves, tmp_path, probes=[Distortion(every_n_steps=1)]) as watch:
        for batch in batches():
            with watch.step():
                total = 0.0
                for optimizer in halves:
                    loss = watch.loss(model(**batch)["loss"])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    total += float(loss.detach())
                totals.append(total)
    losses = [m.values["loss"] for m in watch.record.measurements if m.probe == "training"]
    assert losses == pytest.approx(totals, rel=1e-6)
    assert sorted(set(by_step(watch, "distortion"))) == list(range(1, 9))
    coverage = [m for m in watch.record.measurements if m.probe == "coverage"]
    assert {(m.values["from"], m.step, m.values["state"]) for m in coverage} == {(0.0, 8, 3.0)}


def test_a_closure_counts_once(tmp_path):
    model = Net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    seen = []
    with watching(model, optimizer, tmp_path, probes=[Distortion(every_n_steps=1)]) as watch:
        for batch in batches():
            with watch.step():

                def closure(batch=batch):
                    optimizer.zero_grad()
                    loss = watch.loss(model(**batch)["loss"])
                    loss.backward()
                    seen[-1].append(float(loss.detach()))
                    return loss

                seen.append([])
                optimizer.step(closure)
    assert by_step(watch, "training") == list(range(1, 9))
    assert max(map(len, seen)) > 1
    losses = [m.values["loss"] for m in watch.record.measurements if m.probe == "training"]
    assert losses == pytest.approx([losses[-1] for losses in seen], rel=1e-6)
    assert not happened(watch.events)


# --- epochs, loggers, metrics -----------------------------------------------------------------------------------------


def test_epochs_are_those_that_the_loop_ends(tmp_path):
    model = Net()
    optimizer = sgd(model, 0.1)
    with watching(model, optimizer, tmp_path, probes=[Persistence(every_n_epochs=2, max_dim=0)]) as watch:
        train(model, optimizer, watch, epochs=4)
        assert watch.epoch == 4
    assert sorted({(m.step, m.epoch) for m in watch.record.measurements if m.probe == "persistence"}) == [
        (16, 1),
        (32, 3),
    ]


def test_rows_go_to_loggers_and_values_to_metrics(tmp_path):
    model = Net()
    optimizer, logger = sgd(model, 0.1), CSVLogger(tmp_path)
    with watching(model, optimizer, tmp_path, loggers=[logger], log_every_n_steps=4) as watch:
        train(model, optimizer, watch)
        assert 0.0 < watch.metrics["topology/critical_ratio"] < 1.0
        assert watch.metrics["topology/coverage"] == 1.0
    logger.save()
    rows = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    at = rows[0].split(",").index("step")
    assert {"topology/worst/critical_ratio", "topology/phase"} <= set(rows[0].split(","))
    # The end of the epoch has a row of its own: only then is what was due at it known.
    assert [int(row.split(",")[at]) for row in rows[1:]] == [3, 7, 7]


# --- what breaks ------------------------------------------------------------------------------------------------------


def test_parameters_are_checked(tmp_path):
    model = Net()
    optimizer = sgd(model, 0.1)
    for wrong, match in (
        ({"max_ratio": 1.5}, "max_ratio between 0 and 1"),
        ({"stop_on": "topology_brakedown"}, "got 'topology_brakedown'"),
        ({"log_every_n_steps": -1}, "log_every_n_steps >= 0"),
        ({"planned_steps": 0}, "planned_steps >= 1"),
        ({"max_overhead": 2.0}, "max_overhead between 0 and 1"),
    ):
        with pytest.raises(ValueError, match=match):
            watching(model, optimizer, tmp_path, **wrong)
    with pytest.raises(ValueError, match="LBFGS"):
        watching(model, torch.optim.LBFGS(model.parameters()), tmp_path, max_ratio=0.9)


# --- gate and guard ---------------------------------------------------------------------------------------------------


def test_the_gate_stops_at_the_very_step_and_says_why(tmp_path):
    model = Net()
    optimizer = sgd(model, 0.1)
    with watching(
        model, optimizer, tmp_path, probes=[Distortion(every_n_steps=1)], stop_on="topology_breakdown"
    ) as watch:
        assert train(model, optimizer, watch, epochs=3, kicks=(11,)) == 11
    assert "topology_breakdown at step 11 in net." in watch.gate.reason
    [line] = [m for m in watch.record.measurements if m.probe == "gate"]
    assert (line.step, line.values["stopped"], line.values["topology_breakdown"]) == (11, 1.0, 2.0)
    assert watch.metrics["topology/stopped"] == 1.0


def test_a_quiet_training_is_stopped_by_patience_alone(tmp_path):
    model = Net()
    optimizer = sgd(model, 1e-4)
    rules = StopRules((), patience=3)
    with watching(model, optimizer, tmp_path, stop_on=rules) as watch:
        # The first capture has nothing to be compared with.
        assert train(model, optimizer, watch, epochs=9, lr=1e-4) == 33
    with watching(model, optimizer, tmp_path, stop_on="topology_breakdown") as watch:
        assert train(model, optimizer, watch, epochs=2, lr=1e-4) == 16
    assert not watch.should_stop


# --- resume -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_steps", [3, 7, 8])
def test_a_checkpoint_counts_every_step_up_to_its_own(tmp_path, n_steps):
    model = Net()
    optimizer = sgd(model, 0.01)
    options = {"probes": [Distortion(every_n_steps=1000)], "log_every_n_steps": 1000}
    with watching(model, optimizer, tmp_path, **options) as watch:
        for batch in list(batches())[:n_steps]:
            with watch.step():
                iterate(model, optimizer, batch, 0, 1, watch.loss)
        state = watch.state_dict()
    again = watching(model, optimizer, tmp_path, **options)
    again.load_state_dict(state)
    with again:
        for batch in list(batches())[:2]:
            with again.step():
                iterate(model, optimizer, batch, 0, 1, again.loss)
    assert state["watch"]["shares"]["n_steps"] == n_steps
    assert again.metrics["topology/coverage"] == 1.0
