"""The door for loops written by hand: harmless, exact, and closed whatever happens."""

import math
from itertools import pairwise

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from lightning_topo import Distortion, Persistence, TopologyWatch
from lightning_topo.outputs._gates import StopRules
from tests.callbacks.training import happened
from tests.loops.loops import GROUPS, Net, batches, layers, options, sgd

LIMIT = 0.9


def watching(model, optimizers, folder, **others):
    return TopologyWatch(model, optimizers, dirpath=folder / "topology", **options(**others))


def train(model, optimizer, watch=None, *, epochs=1, kicks=(), lr=0.1, accumulate=1):
    """The loop that a user writes."""
    step = 0
    for _ in range(epochs):
        for k, batch in enumerate(batches()):
            step += 1
            for group in optimizer.param_groups:
                group["lr"] = 3000.0 if step in kicks else lr
            if watch is None:
                _iterate(model, optimizer, batch, k, accumulate, lambda loss: loss)
                continue
            with watch.step():
                _iterate(model, optimizer, batch, k, accumulate, lambda loss: watch.loss(loss, scale=1 / accumulate))
            if watch.should_stop:
                return step
        if watch is not None:
            watch.end_epoch()
    return step


def _iterate(model, optimizer, batch, k, accumulate, look):
    look(model(**batch)["loss"] / accumulate).backward()
    if (k + 1) % accumulate == 0:
        optimizer.step()
        optimizer.zero_grad()


def copies(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def ratio(before, after):
    """The worst group's r in float64, from what is stored."""
    found = []
    for group in GROUPS:
        x, y = (group.gather(tensors).double() for tensors in (before, after))
        i, j = torch.triu_indices(group.n, group.n, 1)
        found.append(float((((y - x)[i] - (y - x)[j]).norm(dim=1) / (x[i] - x[j]).norm(dim=1)).max()))
    return max(found)


def by_step(watch, probe):
    return [m.step for m in watch.record.measurements if m.probe == probe]


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


def test_an_exception_closes_the_record_with_all_that_was_measured(tmp_path):
    model = Net()
    optimizer = sgd(model, 0.1)
    watch = watching(model, optimizer, tmp_path, report=True)

    def loop():
        with watch:
            for k, batch in enumerate(batches()):
                with watch.step():
                    watch.loss(model(**batch)["loss"]).backward()
                    if k == 4:
                        raise KeyError("mine")
                    optimizer.step()
                    optimizer.zero_grad()

    with pytest.raises(KeyError, match="mine"):
        loop()
    assert by_step(watch, "training") == [1, 2, 3, 4]
    assert max(by_step(watch, "coverage")) == 4


def test_an_iteration_that_broke_off_and_was_caught_is_no_step(tmp_path):
    model = Net()
    optimizer = sgd(model, 0.1)
    with watching(model, optimizer, tmp_path, probes=[Distortion(every_n_steps=1)]) as watch:
        for k, batch in enumerate(batches()):
            try:
                with watch.step():
                    watch.loss(model(**batch)["loss"]).backward()
                    if k == 4:
                        raise MemoryError
                    optimizer.step()
            except MemoryError:
                pass
            optimizer.zero_grad()
    assert by_step(watch, "training") == list(range(1, 8))
    assert not happened(watch.events)


class Broken:
    name = "broken"

    def measure(self, capture):
        raise OSError("no such thing")


def test_a_failing_probe_is_an_event_or_an_error(tmp_path):
    model = Net()
    optimizer = sgd(model, 0.1)
    with watching(model, optimizer, tmp_path, probes=[Broken()], on_error="warn") as watch:
        train(model, optimizer, watch, epochs=4)
    assert "probe_failed" in [str(event.name) for event in watch.events]
    with (
        pytest.raises(OSError, match="no such thing"),
        watching(model, optimizer, tmp_path, probes=[Broken()]) as watch,
    ):
        train(model, optimizer, watch, epochs=4)


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


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_no_step_is_above_max_ratio(tmp_path, optimizer):
    lr = 30.0 if optimizer is torch.optim.SGD else 1.0
    model = Net()
    made = optimizer(model.parameters(), lr=lr)
    seen = [copies(model)]
    for batch in batches():
        _iterate(model, made, batch, 0, 1, lambda loss: loss)
        seen.append(copies(model))
    assert max(ratio(*pair) for pair in pairwise(seen)) > 1.0

    model = Net()
    made = optimizer(model.parameters(), lr=lr)
    seen = [copies(model)]
    with watching(model, made, tmp_path, probes=[Distortion(every_n_steps=1)], max_ratio=LIMIT) as watch:
        for _ in range(3):
            for batch in batches():
                with watch.step():
                    _iterate(model, made, batch, 0, 1, watch.loss)
                seen.append(copies(model))
    ratios = [ratio(*pair) for pair in pairwise(seen)]
    assert 0.99 * LIMIT < max(ratios) <= LIMIT
    assert watch.guard.n_updates == 24
    assert watch.guard.n_held > watch.guard.n_dropped
    measured = [m.values for m in watch.record.measurements if m.probe == "distortion"]
    assert max(values["critical_ratio"] for values in measured) <= LIMIT
    assert len([v for v in measured if "proposed_critical_ratio" in v]) == 2 * watch.guard.n_held
    assert "topology_breakdown" not in [str(event.name) for event in watch.events]


def test_a_guard_that_cannot_see_updates_ends_the_training(tmp_path):
    model = Net()
    optimizer = sgd(model, 0.1)

    def loop():
        with watching(model, optimizer, tmp_path, max_ratio=LIMIT) as watch:
            for batch in batches():
                with watch.step():
                    watch.loss(model(**batch)["loss"]).backward()
                    with torch.no_grad():
                        for p in model.parameters():
                            p -= 0.1 * p.grad
                    optimizer.zero_grad()

    with pytest.raises(RuntimeError, match=r"cannot hold what it cannot see: .*SGD does not step"):
        loop()


def test_a_guard_needs_neurons(tmp_path):
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loop():
        with watching(model, optimizer, tmp_path, groups="auto", max_ratio=LIMIT) as watch, watch.step():
            watch.loss(model(torch.ones(1, 4)).sum()).backward()
            optimizer.step()

    with pytest.raises(RuntimeError, match=r"no neurons to work on.*declare_neurons"):
        loop()


# --- resume -----------------------------------------------------------------------------------------------------------


def lines(watch):
    """What does not depend on the captures before: those of a watch's first step, or where a bound asked for one."""
    return [
        (
            m.step,
            m.epoch,
            m.probe,
            m.group,
            {k: v for k, v in m.values.items() if not k.startswith(("log_bottleneck", "span_"))},
        )
        for m in watch.record.measurements
        if m.probe != "coverage" and (m.probe != "distortion" or m.step % 3 == 0)
    ]


def test_a_resumed_training_leaves_the_record_of_a_whole_one(tmp_path):
    def made():
        model = Net()
        return model, sgd(model, 0.1)

    watched = {"stop_on": "topology_breakdown", "max_ratio": LIMIT}
    model, optimizer = made()
    with watching(model, optimizer, tmp_path / "whole", **watched) as whole:
        train(model, optimizer, whole, epochs=4)

    first, optimizer = made()
    with watching(first, optimizer, tmp_path / "parts", **watched) as watch:
        train(first, optimizer, watch, epochs=2)
        checkpoint = {"model": first.state_dict(), "optimizer": optimizer.state_dict(), "topology": watch.state_dict()}
        torch.save(checkpoint, tmp_path / "last.pt")
        folder = watch.dirpath
    loaded = torch.load(tmp_path / "last.pt", weights_only=True)
    second, optimizer = made()
    second.load_state_dict(loaded["model"])
    optimizer.load_state_dict(loaded["optimizer"])
    with watching(second, optimizer, tmp_path / "parts", **watched) as watch:
        watch.load_state_dict(loaded["topology"])
        train(second, optimizer, watch, epochs=2)
        assert watch.dirpath == folder
        assert watch.epoch == 4
        assert watch.guard.n_updates == 32
    assert lines(watch) == lines(whole)
    assert [str(event.name) for event in happened(watch.events)] == ["gap"]
    with pytest.raises(RuntimeError, match="before the first step"):
        watch.load_state_dict(loaded["topology"])


@pytest.mark.parametrize(
    "state", [{"version": 99}, {"version": 1, "step": "x"}, {"version": 1, "step": 3, "epoch": 0}, {"version": 1}]
)
def test_a_damaged_state_is_an_event_and_the_watch_begins_anew(tmp_path, state):
    model = Net()
    optimizer = sgd(model, 0.1)
    with watching(model, optimizer, tmp_path) as watch:
        watch.load_state_dict(state)
        train(model, optimizer, watch)
    [event] = happened(watch.events)
    assert event.name == "gap"
    assert "cannot be used" in event.message


def test_what_was_never_started_can_be_closed_and_saved(tmp_path):
    model = nn.Sequential(*layers())
    watch = watching(model, sgd(model, 0.1), tmp_path)
    assert watch.state_dict() == {}
    watch.load_state_dict({})
    watch.close()
    assert watch.record is None
    assert not list(tmp_path.iterdir())
