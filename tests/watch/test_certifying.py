"""Every step is certified by its bound or measured, also where bounds are read just before the next update."""

import pytest
import torch
from lightning.pytorch import Callback

from lightning_topo import Distortion, Persistence, TopologyMonitor, TopologyWatch, read_record, rows
from lightning_topo._watch import bounds as bounds
from lightning_topo._watch import budget as budget
from lightning_topo._watch import certifying as certifying
from lightning_topo.measurement import OpenCause, StepState
from lightning_topo.neurons import NeuronGroup, ParamSlice
from lightning_topo.phases import replay
from tests.callbacks.training import Classifier, Weights, fit, happened, loader

LEAPS = (12, 26)


class Leaping(Classifier):
    """At two steps the learning rate is far too high; behind the second of them `Clipping` moves the weights."""

    def training_step(self, batch, batch_idx):
        self.optimizers().param_groups[0]["lr"] = 40.0 if self.global_step in LEAPS else 0.05
        return super().training_step(batch, batch_idx)


class ByHand(Leaping):
    """Two optimizers that take turns, each twice in some batches."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for _ in range(1 + batch_idx % 2):
            optimizer = self.optimizers()[batch_idx % 2]
            optimizer.zero_grad()
            self.manual_backward(torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1]))
            optimizer.step()

    def configure_optimizers(self):
        layers = [m for m in self.net if isinstance(m, torch.nn.Linear)]
        return [torch.optim.Adam(layer.parameters(), lr=0.01) for layer in layers[:2]]


class Unseen(Callback):
    """Moves weights between the steps, by writes that no version counts."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx % 3 == 0:
            for parameter in pl_module.parameters():
                parameter.data.mul_(0.999)


class Clipping(Callback):
    """Moves weights between the steps, in some of them."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx % 3 == 0:
            with torch.no_grad():
                for parameter in pl_module.parameters():
                    parameter.mul_(0.999)


KINDS = {
    "plain": (Leaping, {}, []),
    "accumulated": (Leaping, {"accumulate_grad_batches": 3}, []),
    "by hand": (ByHand, {}, []),
    "moved between": (Leaping, {}, [Clipping]),
    "moved between, unseen": (Leaping, {}, [Unseen]),
    "logged now and then": (Leaping, {"log_every_n_steps": 3}, []),
}


@pytest.mark.parametrize(("make", "options", "others"), KINDS.values(), ids=KINDS)
def test_where_bounds_are_awaited_the_record_is_that_of_bounds_read_at_once(
    tmp_path, monkeypatch, make, options, others
):
    found, read = [], []
    for awaits in (False, True):
        monkeypatch.setattr(certifying, "waits", lambda device, awaits=awaits: awaits)
        finish = certifying.Certifying.finish
        monkeypatch.setattr(
            certifying.Certifying,
            "finish",
            lambda self, budget, stands, f=finish: (read.append(self.is_awaited), f(self, budget, stands=stands))[1],
        )
        torch.manual_seed(0)
        monitor, weights = (
            TopologyMonitor([Distortion(every_n_steps=7)], report=False, verbose=False, max_overhead=None),
            Weights(),
        )
        fit(
            make(),
            [monitor, *(other() for other in others), weights],
            root=tmp_path / str(awaits),
            max_epochs=5,
            data=loader(),
            **options,
        )
        record = read_record(monitor.dirpath)
        states = {
            (line.group, step): line.values["state"]
            for line in record.measurements
            if line.probe == "coverage"
            for step in range(int(line.values["from"]) + 1, line.step + 1)
        }
        events = [(event.name, event.step, event.group) for event in happened(monitor.events)]
        exact = {(m.group, m.step): m.values["critical_ratio"] for m in record.measurements if m.probe == "distortion"}
        found.append((states, sorted(events, key=str), exact, weights.seen[-1]))
        monkeypatch.undo()
    assert any(read), "nothing was awaited"
    (states, events, exact, last), (late_states, late_events, late_exact, late_last) = found
    assert all(torch.equal(last[name], late_last[name]) for name in last)
    assert states.keys() == late_states.keys()
    if others:  # a step whose end is gone when its bound is read is bounded or open, and never called exact
        moved = [key for key in exact if key[1] == LEAPS[1] + 1]
        assert moved
        assert not late_exact.keys() & set(moved)
        assert {key: value for key, value in late_exact.items() if key[1] <= LEAPS[1]} == {
            key: value for key, value in exact.items() if key[1] <= LEAPS[1]
        }
        return
    assert late_states == states
    assert late_events == events
    assert late_exact == exact


# --- by steps that are known beforehand -------------------------------------------------------------------------------


def there_and_back(tmp_path, model, optimizer, *, probes, hits=0.6, between=lambda step: None, **options):
    """The state and bound of each of six steps; in the second unit 1 goes part of the way to unit 0, then back.

    On the way back its bound is at least hits / (1 - hits), but neurons end where they were. What reads the units reads
    them all alike.
    """
    reads = f"{len(model) - 1}.weight"
    slices = ParamSlice("0.weight"), ParamSlice("0.bias"), ParamSlice(reads, dims=(1,), role="outgoing")
    group = NeuronGroup("0", "unit", 5, (), slices, "verified")
    with torch.no_grad():
        model.get_parameter(reads).fill_(1.0)
    way = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for name in ("0.weight", "0.bias"):
        values = model.get_parameter(name).detach()
        way[name][1] = hits * (values[0] - values[1])
    watch = TopologyWatch(
        model, optimizer, probes, groups=[group], dirpath=tmp_path, verbose=False, report=False, **options
    )
    with watch:
        for step in range(1, 7):
            sign = {2: -1.0, 3: 1.0}.get(step, 0.0)
            between(step)
            with watch.step():
                watch.loss(model(torch.eye(3)).square().mean()).backward()
                for name, p in model.named_parameters():
                    p.grad = sign * way[name]
                optimizer.step()
    return {
        step: (StepState(int(m.values["state"])), m.values.get("bound"))
        for m in watch.record.measurements
        if m.probe == "coverage"
        for step in range(int(m.values["from"]) + 1, m.step + 1)
    }


def five_units(*more, apart=3.0):
    """A layer whose units 0 and 1 are nearest to each other; with the others far `apart`, so near that they are a pair
    looked at by itself.
    """
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), *more, torch.nn.Linear(5, 2))
    far = apart * torch.tensor([[0, 1, 0], [0, 0, 1], [1, 1, 1.0]])
    with torch.no_grad():
        model[0].weight.copy_(torch.cat([torch.tensor([[0, 0, 0], [1, 0, 0.0]]), far]))
        model[0].bias.zero_()
    return model


class OfTheUser(torch.optim.SGD):
    pass


def test_without_the_probe_of_distortion_nothing_is_certified(tmp_path):
    model = five_units()
    probes = [Persistence(every_n_steps=3, max_dim=0)]
    assert there_and_back(tmp_path, model, torch.optim.SGD(model.parameters(), lr=1.0), probes=probes) == {}


def test_a_step_whose_bound_is_too_large_is_measured_and_its_own_ratio_counts(tmp_path):
    model = five_units()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    states = there_and_back(tmp_path, model, optimizer, probes=[Distortion(1000)], max_overhead=None)
    # From 0.4 apart back to 1 apart: r = 0.6 / 0.4, which is above 1 and was measured.
    assert [state.name for state, _ in states.values()] == ["EXACT", "BOUNDED", "EXACT", *["BOUNDED"] * 3]
    assert states[2][1] >= 0.6
    assert max(bound for step, (state, bound) in states.items() if step > 3) < 1e-6


@pytest.mark.parametrize(
    ("more", "rule", "wanted"),
    [
        ((), torch.optim.SGD, "SPANNED"),
        ((torch.nn.Dropout(0.0),), torch.optim.SGD, "SPANNED"),
        ((torch.nn.Dropout(0.1),), torch.optim.SGD, "OPEN"),  # equal neurons part again: each has a mask of its own
        ((), OfTheUser, "OPEN"),  # nobody knows what its rule does to equal neurons
    ],
)
@pytest.mark.parametrize("apart", [3.0, 9.0])
def test_where_no_time_is_left_to_measure_a_span_counts_only_if_merged_neurons_stay_together(
    tmp_path, monkeypatch, more, rule, wanted, apart
):
    monkeypatch.setattr(budget.Allowance, "allows", lambda self, budget, ahead=0.0: False)
    model = five_units(*more, apart=apart)
    states = there_and_back(tmp_path, model, rule(model.parameters(), lr=1.0), probes=[Distortion(1000)])
    assert states[3][0].name == wanted
    assert states[3][1] >= 1.5
    assert [states[step][0].name for step in (2, 4, 5, 6)] == ["BOUNDED"] * 4


# --- why steps are open -----------------------------------------------------------------------------------------------


def causes(monitor):
    """Why each step is open that is, for any group."""
    return {
        step: OpenCause(int(line.values["cause"])).name
        for line in read_record(monitor.dirpath).measurements
        if line.probe == "coverage" and line.values["state"] == StepState.OPEN
        for step in range(int(line.values["from"]) + 1, line.step + 1)
    }


class Poisoned(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 4:
            for parameter in pl_module.parameters():
                parameter.data.fill_(torch.nan)


class Shrinking(Classifier):
    """Writes to the weights right after an update, before its batch is over."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1]))
        optimizer.step()
        if self.global_step == 5:
            with torch.no_grad():
                for parameter in self.parameters():
                    parameter.mul_(1.01)


class WithoutHooks(Classifier):
    """The update is made by hand: no hook sees it."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        gradients = torch.autograd.grad(loss, list(self.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(self.parameters(), gradients, strict=True):
                parameter.sub_(0.1 * gradient)

    def configure_optimizers(self):
        return []


@pytest.mark.parametrize(
    ("make", "others", "wanted"),
    [
        (Classifier, [Poisoned], {"NOT_FINITE"}),
        (WithoutHooks, [], {"UNSEEN"}),
        (Shrinking, [], {"MOVED"}),
        (Leaping, [], {"NOT_MEASURED"}),
        (Classifier, [], set()),
    ],
)
def test_each_open_step_has_its_reason(tmp_path, monkeypatch, make, others, wanted):
    monkeypatch.setattr(budget.Allowance, "allows", lambda self, budget, ahead=0.0: False)
    monitor = TopologyMonitor([Distortion(every_n_steps=1000)], verbose=False, report=False)
    fit(make(), [monitor, *(other() for other in others)], root=tmp_path, data=loader(), max_epochs=4)
    assert set(causes(monitor).values()) == wanted


# --- spans of groups in which merged neurons may part -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["switched on later", "moved outside", "moved outside before a snapshot"])
def test_a_span_counts_only_while_nothing_else_parts_neurons(tmp_path, monkeypatch, name):
    monkeypatch.setattr(budget.Allowance, "allows", lambda self, budget, ahead=0.0: False)
    monkeypatch.setattr(certifying.Certifying, "_renew", lambda self, measured, step, of_many, anew: None)
    model = five_units(torch.nn.Dropout(0.0))
    model[1].p = 0.0

    def between(step):
        if name == "switched on later" and step == 3:
            model[1].p = 0.1
        if step == {"moved outside": 2, "moved outside before a snapshot": 1}.get(name):
            with torch.no_grad():
                model[0].bias.add_(1e-6)

    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    states = there_and_back(tmp_path, model, optimizer, probes=[Distortion(1000)], between=between)
    assert states[3][0].name == ("SPANNED" if name == "moved outside before a snapshot" else "OPEN")


# --- groups of more neurons than are ever measured --------------------------------------------------------------------


@pytest.fixture
def many(monkeypatch):
    """Groups of more than 20 neurons are too large to measure."""
    for module in ("geometry._snapshots", "_watch.many_neurons", "probes._distortion"):
        monkeypatch.setattr(f"lightning_topo.{module}.MAX_ROWS", 20)


def table_of_words(tmp_path, monkeypatch, n_steps, *, lr=0.01, prepare=lambda table: None, **options):
    """A training whose group of rows is too large; its record, and how often a snapshot was taken of it."""
    taken = []
    given = bounds.snapshot
    monkeypatch.setattr(bounds, "snapshot", lambda cloud: taken.append(1) or given(cloud))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(40, 6), torch.nn.Linear(6, 3))
    prepare(model[0].weight.data)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    watch = TopologyWatch(
        model, optimizer, [Distortion()], groups=[rows("0.weight")], dirpath=tmp_path, verbose=False, report=False,
        **options,
    )  # fmt: skip
    words = torch.arange(20)
    with watch:
        for _ in range(n_steps):
            with watch.step():
                optimizer.zero_grad()
                watch.loss(model(words).square().mean()).backward()
                optimizer.step()
    return watch.record, taken


def test_a_group_that_is_too_large_is_not_asked_for_and_no_new_snapshot_is_taken_while_its_bounds_do(
    tmp_path, monkeypatch, many
):
    record, taken = table_of_words(tmp_path, monkeypatch, 60)
    assert len(taken) == 1
    assert [m.step for m in record.measurements if m.probe == "distortion" and m.group] == []
    lines = [m for m in record.measurements if m.probe == "coverage" and m.group]
    assert {StepState(int(m.values["state"])) for m in lines} == {StepState.BOUNDED}
    assert lines[0].step <= 10, "the phase waits for the first line"
    assert {int(code) for _, code in replay(record.measurements).phases[""]} == {0}


def test_new_snapshots_of_a_group_that_is_too_large_are_paid_for_in_advance(tmp_path, monkeypatch, many):
    monkeypatch.setattr(budget, "EXACT_SHARE", 0.0)
    monkeypatch.setattr(budget, "EXACT_STEPS", 0.0)
    record, taken = table_of_words(tmp_path, monkeypatch, 40, lr=5.0)
    assert len(taken) == 1
    causes = {m.values.get("cause") for m in record.measurements if m.probe == "coverage" and m.group} - {None}
    assert causes == {float(OpenCause.TOO_MANY)}


def test_without_a_budget_they_are_taken_anew_but_not_at_every_step(tmp_path, monkeypatch, many):
    _, taken = table_of_words(tmp_path, monkeypatch, 40, lr=5.0, max_overhead=None)
    assert 1 < len(taken) <= 1 + 40 / certifying.RENEW_STEPS


def test_equal_rows_that_stay_equal_are_certified_in_a_group_that_is_too_large(tmp_path, monkeypatch, many):
    def prepare(table):
        table[30] = table[31]  # words that do not occur

    record, _ = table_of_words(tmp_path, monkeypatch, 30, prepare=prepare)
    states = {m.values["state"] for m in record.measurements if m.probe == "coverage" and m.group}
    assert states == {float(StepState.BOUNDED)}
