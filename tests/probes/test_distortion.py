"""The distortion of steps and of the whole way, on captures made by hand."""

import math
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_topo.geometry import step_distortion
from lightning_topo.neurons import NeuronGroup, ParamSlice
from lightning_topo.probes import Capture, Clouds, Distortion, Persistence
from tests.probes.captures import by_hand, cloud, one_group


def test_distortion_is_that_of_the_step_and_of_the_whole_way():
    x, y, z = cloud(0, 6, 3), cloud(1, 6, 3), cloud(2, 6, 3)
    values = Distortion().measure(by_hand(z, before=y, reference=x)).values["g"]
    step, total = step_distortion(y, z), step_distortion(x, z)
    assert values["critical_ratio"] == step.critical_ratio
    assert (values["critical_i"], values["critical_j"]) == step.critical_pair
    assert values["contraction"] == step.contraction
    assert values["total_expansion"] == total.expansion
    assert values["total_log_distortion"] == pytest.approx(math.log(total.expansion / total.contraction))
    assert values["distinct_neurons"] == 6


@pytest.mark.parametrize("n_blocks", [1, 3])
def test_the_way_since_the_last_capture(n_blocks):
    w, x, y = cloud(0, n_blocks, 6, 3), cloud(1, n_blocks, 6, 3), cloud(2, n_blocks, 6, 3)
    groups = [one_group(n=6, blocks=(n_blocks,))]
    values = Distortion().measure(by_hand(y, before=x, last=w, groups=groups)).values["g"]
    spans = [step_distortion(*pair) for pair in zip(w, y, strict=True)]
    assert values["span_ratio"] == max(span.critical_ratio for span in spans)
    assert values["span_contraction"] == min(span.contraction for span in spans)
    assert values["span_expansion"] == max(span.expansion for span in spans)
    assert not any(name.startswith("span") for name in Distortion().measure(by_hand(y, x, groups=groups)).values["g"])


def test_groups_of_one_shape_are_measured_together_as_each_alone():
    groups = [NeuronGroup(name, "unit", 5, (), (ParamSlice(name),)) for name in "abcd"]
    tensors = [{name: cloud(10 * k + j, 5, 3) for j, name in enumerate("abcd")} for k in range(3)]
    tensors[2]["b"][0, 0] = math.inf
    tensors[2]["c"][1] = tensors[2]["c"][0]  # merged
    x, y, z = (Clouds(groups, named) for named in tensors)

    def measure(some):
        return Distortion().measure(
            Capture(1, 0, nn.Identity(), some, z, y, x, [], nullcontext, last=x, sharding="fsdp2")
        )

    found = measure(groups)
    assert found.values.keys() == set("acd")
    assert found.failures.keys() == set("b")
    for group in groups:
        alone = measure([group])
        assert found.values.get(group.name) == alone.values.get(group.name)
        assert found.failures.get(group.name) == alone.failures.get(group.name)
    assert found.values["c"]["distinct_neurons"] == 4


def test_what_would_take_n_squared_is_not_measured():
    rows = torch.arange(100_000.0)[:, None]
    found = Distortion().measure(by_hand(rows + 1, before=rows))
    assert found.values == {}
    assert "expected at most 20,000 neurons" in found.failures["g"]


def test_without_a_step_it_is_the_identity():
    values = Distortion().measure(by_hand(cloud(0, 6, 3))).values["g"]
    assert (values["critical_ratio"], values["contraction"], values["expansion"]) == (0.0, 1.0, 1.0)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 3), st.integers(2, 5))
def test_blocks_are_clouds_of_their_own(seed, n_blocks, n):
    before, after = cloud(seed, n_blocks, n, 3), cloud(seed + 1, n_blocks, n, 3)
    found = Distortion().measure(by_hand(after, before=before, groups=[one_group(n=n, blocks=(n_blocks,))])).values["g"]
    each = [step_distortion(before[b], after[b]) for b in range(n_blocks)]
    assert found["critical_ratio"] == max(e.critical_ratio for e in each)
    assert found["contraction"] == min(e.contraction for e in each)
    assert found["expansion"] == max(e.expansion for e in each)
    assert found["distinct_neurons"] == n_blocks * n
    i, j = int(found["critical_i"]), int(found["critical_j"])
    assert i // n == j // n


def test_a_group_that_cannot_be_measured_does_not_hide_the_others():
    groups = [NeuronGroup(name, "unit", 4, (), (ParamSlice(name),)) for name in ("bad", "good")]
    tensors = {"bad": torch.full((4, 2), math.nan), "good": cloud(0, 4, 2)}
    clouds = Clouds(groups, tensors)
    made = Capture(1, 0, nn.Identity(), groups, clouds, clouds, clouds, [], nullcontext)
    for probe in (Distortion(), Persistence()):
        result = probe.measure(made)
        assert set(result.values) == {"good"}
        assert set(result.failures) == {"bad"}
        assert "finite" in result.failures["bad"]
