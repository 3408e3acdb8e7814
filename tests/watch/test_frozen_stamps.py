"""Whatever moves a frozen parameter is seen: by its counter, its memory, or its entries."""

import pytest
import torch
from torch import nn

from lightning_topo._watch.bounds import Bounds
from lightning_topo._watch.frozen_stamps import FrozenAtUpdate, FrozenStamps
from lightning_topo.geometry import step_distortion
from lightning_topo.neurons import NeuronGroup, ParamSlice


def in_place(parameter):
    with torch.no_grad():
        parameter[0] += 1.0


def uncounted(parameter):
    parameter.data.mul_(0.5)


def replaced(parameter):
    parameter.data = torch.zeros_like(parameter)


def still(parameter):
    _ = parameter.sum()


@pytest.mark.parametrize("shape", [(3,), (5, 7), (40, 30), (0,)])
@pytest.mark.parametrize("write", [in_place, uncounted, replaced, still])
def test_a_write_is_seen_and_the_next_snapshot_starts_afresh(write, shape):
    if shape == (0,) and write is not still:
        pytest.skip("an empty parameter has nothing to write to")
    frozen = nn.Parameter(torch.randn(shape), requires_grad=False)
    stamps = FrozenStamps({"net": {"weight": frozen}, "other": {"weight": nn.Parameter(torch.ones(2))}})
    stamps.take("net")
    stamps.take("other")
    assert stamps.moved() == set()
    write(frozen)
    seen = set() if write is still else {"net"}
    assert stamps.moved() == seen
    assert stamps.moved() == seen
    stamps.take("net")
    assert stamps.moved() == set()


@pytest.mark.parametrize(("n", "turns"), [(16, 1), (50, 4)])
def test_an_uncounted_write_to_one_of_several_is_seen_within_a_turn(n, turns):
    frozen = {str(k): nn.Parameter(torch.randn(4), requires_grad=False) for k in range(n)}
    stamps = FrozenStamps({"net": frozen})
    stamps.take("net")
    assert not any(stamps.moved() for _ in range(3))
    uncounted(frozen[str(n - 1)])
    assert any(stamps.moved() for _ in range(turns))


def test_inference_tensors_have_no_counter_and_are_compared():
    with torch.inference_mode():
        weight = nn.Parameter(torch.randn(4), requires_grad=False)
    stamps = FrozenStamps({"net": {"weight": weight}})
    stamps.take("net")
    assert stamps.moved() == set()
    with torch.inference_mode():
        weight.mul_(0.5)
    assert stamps.moved() == {"net"}


def test_parameters_that_lie_across_their_memory_are_compared_too():
    weight = nn.Parameter(torch.randn(6, 4).T, requires_grad=False)
    stamps = FrozenStamps({"net": {"weight": weight}})
    stamps.take("net")
    assert stamps.moved() == set()
    uncounted(weight)
    assert stamps.moved() == {"net"}


GROUP = NeuronGroup("net", "unit", 8, (), (ParamSlice("frozen", trainable=False), ParamSlice("trained")))


@pytest.mark.parametrize("equal", [False, True])
def test_bounds_hold_beside_frozen_weights_and_certify_nothing_once_these_have_moved(equal):
    generator = torch.Generator().manual_seed(0)
    frozen = nn.Parameter(torch.randn(8, 5, generator=generator), requires_grad=False)
    before = {"trained": torch.zeros(8, 2) if equal else torch.randn(8, 2, generator=generator)}
    bounds = Bounds([GROUP], before, beside={"net": {"frozen": frozen}})
    for _ in range(6):
        after = {"trained": before["trained"] + 0.02 * torch.randn(8, 2, generator=generator)}
        clouds = (torch.cat([frozen.detach(), tensors["trained"]], 1) for tensors in (before, after))
        bound = bounds.of_step(before, after)["net"]
        assert step_distortion(*clouds).critical_ratio <= bound.step < 0.9
        before = after
    uncounted(frozen)
    after = {"trained": before["trained"] + 0.02}
    assert bounds.of_step(before, after)["net"].step == torch.inf
    bounds.renew(after)
    assert bounds.of_step(after, after)["net"].step < 1e-12


STACK = NeuronGroup("moe", "expert", 3, (), (ParamSlice("experts.*"), ParamSlice("gate")))


def test_a_trained_expert_among_frozen_ones_counts():
    generator = torch.Generator().manual_seed(0)
    frozen = {f"experts.{k}": torch.randn(4, generator=generator) for k in (0, 2)}
    before = {"experts.1": torch.randn(4, generator=generator), "gate": torch.randn(3, 2, generator=generator)}
    bounds = Bounds([STACK], before, beside={"moe": frozen})
    after = {"experts.1": before["experts.1"] + 0.1, "gate": before["gate"]}
    clouds = [STACK.gather({**tensors, **frozen}) for tensors in (before, after)]
    truth = step_distortion(*clouds).critical_ratio
    assert truth > 0.0
    assert truth <= bounds.of_step(before, after)["moe"].step


def test_what_moves_after_every_snapshot_keeps_nothing_apart_and_the_bounds_hold():
    generator = torch.Generator().manual_seed(0)
    frozen = nn.Parameter(torch.randn(8, 5, generator=generator), requires_grad=False)
    before = {"trained": torch.randn(8, 2, generator=generator)}
    bounds, certified = Bounds([GROUP], before, beside={"net": {"frozen": frozen}}), []
    for _ in range(12):
        in_place(frozen)
        after = {"trained": before["trained"] + 0.02 * torch.randn(8, 2, generator=generator)}
        clouds = (torch.cat([frozen.detach(), tensors["trained"]], 1) for tensors in (before, after))
        bound = bounds.of_step(before, after)["net"]
        assert step_distortion(*clouds).critical_ratio <= bound.step
        certified.append(bound.step < 1.0)
        nearest = {"net": (torch.full((1, 8), 100.0), torch.zeros(1, 1))}  # of whole neurons
        bounds.renew(after, nearest if len(certified) > 6 else None)
        before = after
    assert certified == [False, False, *[True] * 10]


@pytest.mark.parametrize("every", [1, 7])
def test_what_moves_now_and_then_is_not_given_up(every):
    weight = nn.Parameter(torch.randn(6, 4), requires_grad=False)
    stamps = FrozenStamps({"net": {"weight": weight}})
    stamps.take("net")
    for k in range(40):
        stamps.moved()
        if k % every == every - 1:
            in_place(weight)
            stamps.moved()
            stamps.take("net")
    assert stamps.restless == ({"net"} if every == 1 else set())
    assert stamps.moved() == set()


def test_members_of_stacks_are_never_given_up():
    generator = torch.Generator().manual_seed(0)
    frozen = {f"experts.{k}": nn.Parameter(torch.randn(4, generator=generator)) for k in (0, 2)}
    before = {"experts.1": torch.randn(4, generator=generator), "gate": torch.randn(3, 2, generator=generator)}
    bounds = Bounds([STACK], before, beside={"moe": frozen})
    for _ in range(5):
        in_place(frozen["experts.0"])
        assert bounds.of_step(before, before)["moe"].step == torch.inf
        bounds.renew(before)


@pytest.mark.parametrize("n", [3, 40])
def test_who_writes_uncounted_behind_an_update_is_found_in_a_turn_and_then_every_time(n):
    frozen = {f"{k}": nn.Parameter(torch.randn(6), requires_grad=False) for k in range(n)}
    stamps, seen = FrozenAtUpdate(), []
    for _ in range(8):
        stamps.updated(frozen)
        assert stamps.written() == set()
        uncounted(frozen[f"{n - 1}"])
        seen.append(stamps.written())
        assert seen[-1] in (set(), set(frozen))  # who writes to one may have written to all
    first = seen.index(set(frozen))
    assert first <= n // 16
    assert seen[first:] == [set(frozen)] * (8 - first)


def test_a_counted_write_behind_an_update_names_what_it_has_moved():
    frozen = {f"{k}": nn.Parameter(torch.randn(6), requires_grad=False) for k in range(40)}
    stamps = FrozenAtUpdate()
    in_place(frozen["7"])
    stamps.updated(frozen)
    in_place(frozen["30"])
    assert stamps.written() == {"30"}
