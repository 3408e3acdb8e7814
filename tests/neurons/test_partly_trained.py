"""Layers of which a part is trained: what begins equal there is told apart by what is frozen, and tears nothing."""

import lightning as L
import pytest
import torch
from torch import nn

import lightning_topo.neurons._partly_trained as partly_trained
from lightning_topo import Distortion, NeuronGroup, TopologyMonitor, TopologyStepGuard
from lightning_topo.neurons import ParamSlice
from lightning_topo.neurons._partly_trained import REASON, frozen_beside, told_apart_by_frozen, trained_columns
from tests.callbacks.training import fit


class Adapted(nn.Module):
    """A frozen layer with a trained part that begins without effect."""

    def __init__(self, kind):
        super().__init__()
        self.base = nn.Linear(4, 6)
        self.base.weight.requires_grad_(False)
        self.base.bias.requires_grad_(False)
        self.kind = kind
        if kind == "low rank":
            self.a, self.b = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.zeros(6, 3))
        elif kind == "nearly equal":
            self.scale = nn.Parameter(torch.zeros(6) + 1e-4 * torch.arange(6.0))
        else:
            self.scale = nn.Parameter(torch.ones(6) if kind == "scale" else torch.zeros(6))

    def forward(self, x):
        if self.kind == "low rank":
            return self.base(x) + x @ self.a.T @ self.b.T
        return self.base(x) * self.scale if self.kind == "scale" else self.base(x) + self.scale


class FineTuned(L.LightningModule):
    def __init__(self, kind, *, twins=False):
        super().__init__()
        self.layer, self.head = Adapted(kind), nn.Linear(6, 3)
        self.head.requires_grad_(False)
        if twins:
            with torch.no_grad():
                for weight in (self.layer.base.weight, self.layer.base.bias, self.head.weight.T):
                    weight[1] = weight[0]

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.head(torch.tanh(self.layer(batch[0]))), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-3)


def neurons_of_layer(module):
    """The neurons of the layer as a whole, and what is trained of them."""
    base, layer = module.layer.base, module.layer
    own = layer.b if layer.kind == "low rank" else layer.scale[:, None]
    whole = torch.cat([base.weight, base.bias[:, None], own, module.head.weight.T], 1)
    return whole.detach().double().clone(), own.detach().double().clone()


def by_brute_force(before, after):
    """r, and by how much distances shrink and stretch, over all pairs."""
    i, j = torch.triu_indices(len(before), len(before), 1)
    start, moved = before[i] - before[j], (after - before)[i] - (after - before)[j]
    stretch = ((start + moved).norm(dim=1) / start.norm(dim=1)).tolist()
    return float((moved.norm(dim=1) / start.norm(dim=1)).max()), min(stretch), max(stretch)


class BruteForce(L.Callback):
    """The map of each step of the whole neurons, that since the beginning, and r of what is trained of them."""

    def __init__(self):
        self.steps, self.totals, self.parts = [], [], []
        self.first = None

    def on_train_batch_start(self, trainer, module, batch, index):
        self.before = neurons_of_layer(module)
        self.first = self.before[0] if self.first is None else self.first

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        whole, part = neurons_of_layer(module)
        self.steps.append(by_brute_force(self.before[0], whole))
        self.totals.append(by_brute_force(self.first, whole))
        self.parts.append(by_brute_force(self.before[1], part)[0])


def measured(monitor, group):
    found = [m for m in monitor.record.measurements if m.probe == "distortion" and m.group == group]
    return {m.step: m.values for m in found if "critical_ratio" in m.values}


def bounds_of(monitor, group):
    """The bound of each step that has one."""
    found = [m for m in monitor.record.measurements if m.probe == "coverage" and m.group == group]
    with_bound = [m for m in found if "bound" in m.values]
    return {step: m.values["bound"] for m in with_bound for step in range(int(m.values["from"]) + 1, m.step + 1)}


KINDS = ["low rank", "scale", "shift", "nearly equal"]


@pytest.mark.parametrize("guards", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_frozen_of_neurons_keeps_them_apart(tmp_path, kind, guards):
    torch.manual_seed(0)
    seen = BruteForce()
    monitor = TopologyMonitor([Distortion(every_n_steps=1)], dirpath=tmp_path / "run", verbose=False)
    guard = TopologyStepGuard(0.9)
    fit(FineTuned(kind), [monitor, *([guard] if guards else []), seen], root=tmp_path, max_steps=6)
    [group] = [group for group in monitor.groups if group.n == 6]
    found = measured(monitor, group.name)
    assert list(found) == [1, 2, 3, 4, 5, 6]
    for values, step, total in zip(found.values(), seen.steps, seen.totals, strict=True):
        names = ("critical_ratio", "contraction", "expansion")
        assert [values[name] for name in names] == pytest.approx(step, rel=1e-3)
        assert [values[f"total_{name}"] for name in names[1:]] == pytest.approx(total[1:], rel=1e-3)
        assert values["distinct_neurons"] == 6
    assert not max(seen.parts) < 1 or kind == "scale"  # of the trained part alone r says nothing
    assert max(ratio for ratio, _, _ in seen.steps) < 0.9
    assert guard.n_held == 0
    assert "topology_breakdown" not in {event.name for event in monitor.events}


@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_of_a_step_counts_what_is_frozen(tmp_path, kind):
    """Measured once, and certified by bounds from there on, none of them below the truth."""
    torch.manual_seed(0)
    seen = BruteForce()
    monitor = TopologyMonitor(
        [Distortion(every_n_steps=1000)], dirpath=tmp_path / "run", max_overhead=1e-9, verbose=False
    )
    fit(FineTuned(kind), [monitor, seen], root=tmp_path, max_steps=8)
    [group] = [group for group in monitor.groups if group.n == 6]
    assert len(measured(monitor, group.name)) <= 2
    bound = bounds_of(monitor, group.name)
    assert len(bound) >= 7
    assert all(seen.steps[step - 1][0] <= bound[step] < 1.0 for step in bound)


class Rewrites(L.Callback):
    """Lets frozen weights be others from the second step on: neurons that are hardly apart."""

    def __init__(self, how):
        self.how = how

    @torch.no_grad()
    def on_train_batch_start(self, trainer, module, batch, index):
        base, head = module.layer.base, module.head
        if trainer.global_step != 1:
            return
        for one in (base.weight, base.bias, head.weight):
            if self.how == "in place":
                one.mul_(1e-5)
            elif self.how == "uncounted":
                one.data.mul_(1e-5)
        if self.how == "another":
            for layer in (base, head):
                layer.weight = nn.Parameter(1e-5 * layer.weight, requires_grad=False)
            base.bias = nn.Parameter(1e-5 * base.bias, requires_grad=False)


@pytest.mark.parametrize("how", ["in place", "uncounted", "another"])
def test_frozen_weights_that_something_rewrites_keep_no_neurons_apart(tmp_path, how):
    torch.manual_seed(0)
    seen, guarded = BruteForce(), BruteForce()
    monitor = TopologyMonitor(dirpath=tmp_path / "run", verbose=False)
    fit(FineTuned("low rank"), [monitor, Rewrites(how), seen], root=tmp_path, max_steps=6)
    [group] = [group for group in monitor.groups if group.n == 6]
    assert max(ratio for ratio, _, _ in seen.steps[:1]) < 0.1
    assert seen.steps[1][0] > 0.5
    exact = measured(monitor, group.name)
    known = exact[2]["critical_ratio"] if 2 in exact else bounds_of(monitor, group.name)[2]
    assert known >= seen.steps[1][0] * (1 - 1e-3)
    torch.manual_seed(0)
    guard = TopologyStepGuard(0.3)
    fit(FineTuned("low rank"), [guard, Rewrites(how), guarded], root=tmp_path, max_steps=6)
    assert guard.n_held >= 1
    assert max(ratio for ratio, _, _ in guarded.steps) <= 0.3 * (1 + 1e-6)


def test_a_fine_tuning_is_the_same_bit_for_bit(tmp_path):
    found = []
    for callbacks in ([], [TopologyMonitor(dirpath=tmp_path / "run", verbose=False), TopologyStepGuard(0.9)]):
        torch.manual_seed(0)
        module = FineTuned("low rank")
        fit(module, callbacks, root=tmp_path, max_steps=6)
        found.append(module.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("kind", ["low rank", "scale", "shift"])
def test_what_begins_equal_over_frozen_weights_that_are_too_large_is_left_out_with_the_reason(
    tmp_path, kind, monkeypatch
):
    monkeypatch.setattr(partly_trained, "MOST_WHOLE", 0)
    torch.manual_seed(0)
    monitor = TopologyMonitor(dirpath=tmp_path / "run", verbose=False)
    fit(FineTuned(kind), [monitor], root=tmp_path, max_steps=6)
    assert "topology_breakdown" not in {event.name for event in monitor.events}
    # The directions between A and B are trained as a whole, and measured.
    assert [group.n for group in monitor.groups] == ([3] if kind == "low rank" else [])
    reasons = {one.param: one.reason for one in monitor.watch._neurons.finding.coverage if not one.groups}
    assert kind == "low rank" or reasons["layer.scale"] == REASON


def test_neurons_that_are_equal_as_a_whole_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(partly_trained, "MOST_WHOLE", 0)
    torch.manual_seed(0)
    monitor = TopologyMonitor(dirpath=tmp_path / "run", verbose=False)
    fit(FineTuned("shift", twins=True), [monitor], root=tmp_path, max_steps=2)
    (group,) = monitor.groups
    values = {name: p.detach() for name, p in FineTuned("shift").named_parameters()}
    assert told_apart_by_frozen(group, values)
    assert not told_apart_by_frozen(group, values | {"layer.scale": torch.arange(6.0)})
    assert not told_apart_by_frozen(group, {"layer.scale": torch.zeros(6)})  # nothing frozen is known of it


def test_what_a_cloud_holds_of_frozen_weights_counts_and_no_more():
    group = NeuronGroup("net", "unit", 2, (), tuple(ParamSlice(name, trainable=name == "b") for name in "uwb"))
    values = {"u": torch.ones(2), "w": torch.eye(2), "b": torch.zeros(2)}
    assert told_apart_by_frozen(group, values)
    assert told_apart_by_frozen(group, values, {"u"})  # it is the same for both
    assert not told_apart_by_frozen(group, values, {"w"})


EXPERTS = NeuronGroup("moe", "expert", 3, (), (ParamSlice("experts.*.weight"), ParamSlice("gate")))


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.randn(3, 2))
        self.experts = nn.ModuleList(nn.Linear(2, 2, bias=False) for _ in range(3))


@pytest.mark.parametrize("most", [0, 1 << 20])
def test_frozen_members_of_a_stack_belong_to_it_whatever_they_take(most, monkeypatch):
    monkeypatch.setattr(partly_trained, "MOST_WHOLE", most)
    module = Experts()
    trained = {"experts.1.weight": module.experts[1].weight}
    beside = frozen_beside([EXPERTS], module, trained)["moe"]
    assert beside.keys() == {"experts.0.weight", "experts.2.weight"} | ({"gate"} if most else set())
    whole = {**trained, **beside}
    flags = trained_columns(EXPERTS, whole, beside)
    assert flags.tolist() == [True] * 4 + ([False] * 2 if most else [])
    assert EXPERTS.gather(whole).shape == (3, len(flags))


@pytest.mark.parametrize("unreadable", ["int8", "packed", "elsewhere", "masks", "nan", "sparse"])
def test_frozen_weights_that_cannot_be_read_are_left_out(unreadable):
    module = nn.Linear(3, 4)
    packed = {
        "int8": torch.ones(4, 3, dtype=torch.int8),
        "packed": torch.ones(6),
        "elsewhere": torch.ones(4, 3).to("meta"),
        "masks": torch.ones(4, 3).masked_fill(torch.eye(4, 3) > 0, -torch.inf),
        "nan": torch.full((4, 3), torch.nan),
        "sparse": torch.eye(4, 3).to_sparse(),
    }
    module.weight = nn.Parameter(packed[unreadable], requires_grad=False)
    group = NeuronGroup("net", "unit", 4, (), (ParamSlice("weight"), ParamSlice("bias")))
    assert frozen_beside([group], module, {"bias": module.bias}) == {}


def test_what_is_trained_as_a_whole_or_not_at_all_has_nothing_beside():
    module = nn.Linear(3, 4)
    group = NeuronGroup("net", "unit", 4, (), (ParamSlice("weight"), ParamSlice("bias")))
    assert frozen_beside([group], module, dict(module.named_parameters())) == {}
    assert frozen_beside([group], module, {}) == {}


def test_a_target_that_follows_is_no_part_of_the_neurons_and_a_frozen_base_is():
    module = nn.ModuleDict({"online": nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))})
    module["target"] = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    pieces = [
        ParamSlice(f"{net}.{name}", dims=dims, role="incoming" if net == "online" else "buffer")
        for net in ("online", "target")
        for name, dims in (("0.weight", (0,)), ("0.bias", (0,)), ("2.weight", (1,)))
    ]
    group = NeuronGroup("online.0", "unit", 4, (), tuple(pieces))
    named = dict(module.named_parameters())
    online = {name: p.detach() for name, p in named.items() if name.startswith("online")}
    assert frozen_beside([group], module, online) == {}
    bias = {"online.0.bias": named["online.0.bias"].detach()}
    own = NeuronGroup("online.0", "unit", 4, (), tuple(pieces[:3]))
    assert set(frozen_beside([own], module, bias)["online.0"]) == {"online.0.weight", "online.2.weight"}
