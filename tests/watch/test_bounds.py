"""The bounds of a training's steps against the exact critical ratio, and what an exact measurement leaves for them."""

import itertools

import pytest
import torch

from lightning_topo._watch.bounds import Bounds
from lightning_topo.geometry import distortions, step_distortion
from lightning_topo.neurons import NeuronGroup, ParamSlice
from lightning_topo.neurons._displacements import DisplacementMeter

GROUPS = [
    NeuronGroup("units", "unit", 12, (), (ParamSlice("up"), ParamSlice("down", dims=(1,)))),
    NeuronGroup("heads", "head_dim", 6, (2,), (ParamSlice("up", (("unflatten", 0, (2, 6)),), (0, 1)),)),
]


def states(n, size, dtype=torch.float32, seed=0):
    """Parameters after each of n steps of a random walk."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"up": (12, 5), "down": (4, 12)}
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    found = []
    for _ in range(n):
        found.append({name: tensor.to(dtype) for name, tensor in state.items()})
        state = {k: t + size * torch.randn(t.shape, generator=generator) for k, t in state.items()}
    return found


def ratio_of(before, after, n):
    """The exact r, the worst block's."""
    return max(step_distortion(x, y).critical_ratio for x, y in zip(before.split(n), after.split(n), strict=True))


def nearest(group, before, after):
    clouds = (group.gather(tensors).unflatten(0, (-1, group.n)) for tensors in (before, after, before))
    found = distortions(*clouds)
    return found.nearest, found.resolved


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-4, 1e-2, 0.3])
@pytest.mark.parametrize("renewal", ["never", "by itself", "from a measurement"])
def test_never_below_the_truth(dtype, size, renewal):
    walk = states(12, size, dtype)
    bounds = Bounds(GROUPS, walk[0])
    for step, (before, after) in enumerate(itertools.pairwise(walk)):
        found = bounds.of_step(before, after)
        for group in GROUPS:
            assert not found[group.name].step < ratio_of(group.gather(before), group.gather(after), group.n)
            assert not found[group.name].span < ratio_of(bounds.last[group.name], group.gather(after), group.n)
        if step % 4 == 3 and renewal != "never":
            known = {g.name: nearest(g, before, after) for g in GROUPS} if renewal == "from a measurement" else None
            bounds.renew(after, known)
    if size == 1e-4 and dtype is torch.float32:
        assert all(found[group.name].step < 0.01 for group in GROUPS)


def test_a_measurement_s_distances_bound_as_well_as_a_snapshot_of_one_s_own():
    before, middle, after = states(3, 1e-3)
    own, given = Bounds(GROUPS, before), Bounds(GROUPS, before)
    own.renew(middle)
    given.renew(middle, {group.name: nearest(group, before, middle) for group in GROUPS})
    for a, b in zip(own.of_step(middle, after).values(), given.of_step(middle, after).values(), strict=True):
        assert a.step == pytest.approx(b.step, rel=1e-2)


def test_the_snapshot_s_parameters_are_looked_at_only_where_the_path_does_not_do(monkeypatch):
    asked, read = [], []
    quiet, wild = states(6, 1e-4), states(2, 0.3)

    def resting(device, n_bytes):
        asked.append((device, n_bytes))
        return torch.device("cpu")

    bounds = Bounds(GROUPS[:1], quiet[0], resting=resting)
    assert asked == [(torch.device("cpu"), 4 * sum(tensor.numel() for tensor in quiet[0].values()))]
    given = type(bounds._origin).__getitem__
    monkeypatch.setattr(type(bounds._origin), "__getitem__", lambda self, name: read.append(name) or given(self, name))
    for before, after in itertools.pairwise(quiet):
        bounds.of_step(before, after)
    bounds.renew(quiet[-1])
    bounds.of_step(quiet[-1], quiet[-1])
    assert read == []
    bounds.forget_path()
    bounds.of_step(quiet[-1], quiet[-1])
    assert sorted(set(read)) == ["down", "up"]
    read.clear()
    bounds.of_step(quiet[-1], wild[1])
    assert read


def test_where_the_path_is_too_long_the_snapshot_s_parameters_are_read_once(monkeypatch):
    """To and fro: the path is long, and the neurons are where they were; before the step they were a step away."""
    here, there = states(2, 3e-3)
    bounds = Bounds(GROUPS[:1], here)
    looks = [0]
    given = DisplacementMeter.lengths

    def counted(meter, before, after):
        looks[-1] += before is bounds._origin
        return given(meter, before, after)

    monkeypatch.setattr(DisplacementMeter, "lengths", counted)
    for k in range(400):
        found = bounds.of_step(*((here, there) if k % 2 == 0 else (there, here)))["units"]
        assert found.step < 0.9
        looks.append(0)
    assert max(looks) == 1
    assert sum(looks) < 100


def test_right_after_a_snapshot_nothing_has_moved():
    before, after = states(2, 1e-2)
    fresh, measured = Bounds(GROUPS, before), Bounds(GROUPS, before)
    measured.forget_path()
    for one, other in zip(fresh.of_step(before, after).values(), measured.of_step(before, after).values(), strict=True):
        assert one.step == pytest.approx(other.step, rel=1e-12)
    fresh.renew(after)
    assert torch.equal(fresh.last["units"], GROUPS[0].gather(after))


def test_it_knows_where_the_span_began():
    walk = states(4, 1e-3)
    bounds = Bounds(GROUPS, walk[0])
    for before, after in itertools.pairwise(walk):
        bounds.of_step(before, after)
    assert bounds.n_steps == 3
    assert torch.equal(bounds.last["units"], GROUPS[0].gather(walk[0]))
    bounds.renew(walk[3])
    assert bounds.n_steps == 0
    assert torch.equal(bounds.last["units"], GROUPS[0].gather(walk[3]))


def test_a_move_between_two_steps_that_nothing_counted_leaves_no_gap_in_the_path():
    """Two neurons are brought together in between: without the doubt the next step's bound is far below its ratio."""
    start = states(1, 0.0)[0]
    place = {name: tensor.clone() for name, tensor in start.items()}
    moved = {name: tensor + 1e-4 for name, tensor in start.items()}
    bounds = Bounds(GROUPS[:1], place)
    launched = bounds.launch(place, moved)
    assert bool(bounds.still(launched))
    moved["up"][1], moved["down"][:, 1] = moved["up"][0] + 1e-3, moved["down"][:, 0]
    assert not bool(bounds.still(launched))
    bounds.read(launched, stands=False)
    after = {name: tensor.clone() for name, tensor in moved.items()}
    after["up"][1] += 0.01
    truth = ratio_of(*(GROUPS[0].gather(tensors) for tensors in (moved, after)), 12)
    assert truth > 1
    bounds.doubt(bounds.still(launched))
    assert not bounds.of_step(moved, after)["units"].step < truth


def test_a_device_that_adds_up_in_another_order_has_moved_nothing(monkeypatch):
    """As a GPU does at every call; if that were taken for a move, the snapshot would be read at every step."""
    before, after = states(2, 1e-2)
    bounds = Bounds(GROUPS, before)
    launched = bounds.launch(before, after)
    given = DisplacementMeter.lengths
    other_order = 1 + torch.finfo(torch.float64).eps * torch.randint(-64, 65, launched.moved.shape).double()
    monkeypatch.setattr(DisplacementMeter, "lengths", lambda *states: given(*states) * other_order)
    assert not torch.equal(bounds._meter.lengths(before, after), launched.moved)
    assert bool(bounds.still(launched))
    after["up"][0] += 1e-5
    assert not bool(bounds.still(launched))


# --- groups of more neurons than are ever measured --------------------------------------------------------------------


@pytest.fixture
def many(monkeypatch):
    """Groups of more than ten neurons are too large to measure."""
    monkeypatch.setattr("lightning_topo.geometry._snapshots.MAX_ROWS", 10)
    monkeypatch.setattr("lightning_topo._watch.many_neurons.MAX_ROWS", 10)


@pytest.mark.parametrize("size", [1e-4, 1e-2])
def test_a_snapshot_that_is_carried_along_is_never_below_the_truth(many, size):
    walk = states(16, size)
    bounds = Bounds(GROUPS, walk[0])
    for step, (before, after) in enumerate(itertools.pairwise(walk)):
        found = bounds.of_step(before, after)
        for group in GROUPS:
            assert not found[group.name].step < ratio_of(group.gather(before), group.gather(after), group.n)
            assert not found[group.name].span < ratio_of(bounds.last[group.name], group.gather(after), group.n)
        if step % 4 == 3:
            bounds.renew(after, carries={"units"})
            assert torch.equal(bounds.last["units"], GROUPS[0].gather(after))
    assert all(found[group.name].step < 0.01 for group in GROUPS) or size > 1e-4


def test_a_group_whose_snapshot_certifies_nothing_is_given_up_and_looked_at_no_more(many, monkeypatch):
    here, there = states(2, 1e-3)
    here = {"up": here["up"].clone(), "down": here["down"].clone()}
    for name, dim in (("up", 0), ("down", 1)):
        here[name].select(dim, 1).copy_(here[name].select(dim, 0))  # equal at the snapshot, and apart after each step
    bounds = Bounds(GROUPS[:1], here)
    assert bounds.many.seconds > 0.0
    looks = []
    given = DisplacementMeter.lengths
    monkeypatch.setattr(DisplacementMeter, "lengths", lambda *args: looks.append(args) or given(*args))
    for k in range(5):
        looks.clear()
        found = bounds.read(bounds.launch(*((here, there) if k % 2 == 0 else (there, here))))["units"]
        assert (found.step, found.span) == (float("inf"), float("inf"))
        assert len(looks) == 0 or k == 0
        assert bool(bounds.still(bounds.launch(here, there)))
    bounds.renew(there)
    assert bounds.read(bounds.launch(there, there))["units"].step < 0.01


def test_a_guard_is_given_the_bound_of_every_group(many):
    here, there = states(2, 1e-3)
    wild = states(2, 5.0)[1]
    bounds = Bounds(GROUPS[:1], here)
    assert bounds.of_step(here, wild)["units"].span >= 1.0
    bounds.forget_path()
    assert bounds.of_step(here, there)["units"].step < 0.1


def test_it_knows_whether_something_else_has_moved_the_neurons_since_the_snapshot():
    here, there = states(2, 1e-3)
    bounds = Bounds(GROUPS, here)
    assert not bounds.was_moved_outside
    bounds.forget_path()
    bounds.of_step(here, there)
    assert bounds.was_moved_outside
    bounds.renew(there)
    assert not bounds.was_moved_outside
    bounds.doubt(torch.tensor(False))
    bounds.of_step(here, there)
    assert bounds.was_moved_outside
