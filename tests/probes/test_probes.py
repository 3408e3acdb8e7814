"""The probes on captures made by hand: no Trainer is needed."""

import math
from contextlib import contextmanager, nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_topo.geometry import step_distortion
from lightning_topo.homology import persistence
from lightning_topo.neurons import NeuronGroup, ParamSlice
from lightning_topo.probes import Capture, Clouds, Distortion, Persistence, Sharpness


def group(name="g", n=5, blocks=()):
    dims = tuple(range(len(blocks) + 1))
    return NeuronGroup(name, "unit", n, blocks, (ParamSlice("w", dims=dims),))


def capture(after, before=None, reference=None, groups=None, previous=None, **options):
    groups = groups or [group(n=len(after))]

    def clouds(tensor):
        return Clouds(groups, {"w": tensor})

    return Capture(
        step=1,
        epoch=0,
        module=options.get("module", nn.Identity()),
        groups=groups,
        neurons=clouds(after),
        before=None if before is None else clouds(before),
        reference=clouds(after if reference is None else reference),
        optimizers=options.get("optimizers", []),
        training_loss=options.get("training_loss", nullcontext),
        previous=previous,
        last=None if "last" not in options else clouds(options["last"]),
    )


def cloud(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_distortion_is_that_of_the_step_and_of_the_whole_way():
    x, y, z = cloud(0, 6, 3), cloud(1, 6, 3), cloud(2, 6, 3)
    values = Distortion().measure(capture(z, before=y, reference=x)).values["g"]
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
    groups = [group(n=6, blocks=(n_blocks,))]
    values = Distortion().measure(capture(y, before=x, last=w, groups=groups)).values["g"]
    spans = [step_distortion(*pair) for pair in zip(w, y, strict=True)]
    assert values["span_ratio"] == max(span.critical_ratio for span in spans)
    assert values["span_contraction"] == min(span.contraction for span in spans)
    assert values["span_expansion"] == max(span.expansion for span in spans)
    assert not any(name.startswith("span") for name in Distortion().measure(capture(y, x, groups=groups)).values["g"])


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
    found = Distortion().measure(capture(rows + 1, before=rows))
    assert found.values == {}
    assert "expected at most 20,000 neurons" in found.failures["g"]


def test_without_a_step_it_is_the_identity():
    values = Distortion().measure(capture(cloud(0, 6, 3))).values["g"]
    assert (values["critical_ratio"], values["contraction"], values["expansion"]) == (0.0, 1.0, 1.0)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 3), st.integers(2, 5))
def test_blocks_are_clouds_of_their_own(seed, n_blocks, n):
    before, after = cloud(seed, n_blocks, n, 3), cloud(seed + 1, n_blocks, n, 3)
    found = Distortion().measure(capture(after, before=before, groups=[group(n=n, blocks=(n_blocks,))])).values["g"]
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


def test_persistence_summarises_the_diagram():
    angles = torch.linspace(0, 2 * math.pi, 25)[:-1]
    circle = torch.stack([angles.cos(), angles.sin()], 1)
    result = Persistence(betti_scale=0.25).measure(capture(circle))
    values, diagram = result.values["g"], result.diagrams["g"]
    assert (values["betti_0"], values["betti_1"]) == (1.0, 1.0)
    assert values["max_persistence_1"] == pytest.approx(float((diagram[1].deaths - diagram[1].births).max()))
    assert "log_bottleneck_0" not in values
    assert diagram[0].deaths.shape == (24,)


def test_a_second_capture_is_compared_with_the_first_and_keeps_its_bound():
    first, second = cloud(0, 12, 3), cloud(0, 12, 3) + 0.01 * cloud(1, 12, 3)
    probe = Persistence()
    before = probe.measure(capture(first))
    values = probe.measure(capture(second, previous=before)).values["g"]
    step = step_distortion(first, second)
    assert values["log_bottleneck_bound"] == pytest.approx(max(math.log(step.expansion), -math.log(step.contraction)))
    assert 0.0 < values["log_bottleneck_0"] <= values["log_bottleneck_bound"] * (1 + 1e-6)
    assert 0.0 <= values["log_bottleneck_1"] <= values["log_bottleneck_bound"] * (1 + 1e-6)


def test_landmarks_bring_no_bound():
    probe = Persistence(max_landmarks=6)
    before = probe.measure(capture(cloud(0, 12, 3)))
    result = probe.measure(capture(cloud(1, 12, 3), previous=before))
    assert not result.diagrams["g"].exact
    assert "log_bottleneck_bound" not in result.values["g"]
    assert "log_bottleneck_0" in result.values["g"]


def test_blocks_have_a_diagram_each_and_their_betti_numbers_add_up():
    points = torch.stack([cloud(0, 5, 2), 10 * cloud(1, 5, 2)])
    result = Persistence().measure(capture(points, groups=[group(n=5, blocks=(2,))]))
    assert list(result.diagrams) == ["g[0]", "g[1]"]
    total = sum(float((persistence(p, 0)[0].deaths).isinf().sum()) for p in points)
    assert result.values["g"]["betti_0"] >= total


def test_sharpness_hands_its_vector_on():
    module = nn.Linear(3, 1)
    x = cloud(0, 20, 3)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)

    @contextmanager
    def training_loss(loss_fn):
        yield lambda: (loss_fn or (lambda m, b: m(b).square().mean()))(module, x)

    options = {"module": module, "optimizers": [optimizer], "training_loss": training_loss}
    first = Sharpness().measure(capture(cloud(0, 4, 2), **options))
    second = Sharpness().measure(capture(cloud(0, 4, 2), previous=first, **options))
    assert second.values[""]["sharpness"] == pytest.approx(first.values[""]["sharpness"], rel=0.02)
    assert first.values[""]["sharpness_ratio"] == pytest.approx(0.05 * first.values[""]["sharpness"])
    assert first.values[""]["converged"] == 1.0
    other = Sharpness(loss_fn=lambda m, b: 4 * m(b).square().mean()).measure(capture(cloud(0, 4, 2), **options))
    assert other.values[""]["sharpness"] == pytest.approx(4 * first.values[""]["sharpness"], rel=0.04)


def test_an_unknown_optimizer_has_no_ratio():
    module = nn.Linear(3, 1)

    @contextmanager
    def training_loss(loss_fn):
        yield lambda: module(torch.ones(2, 3)).square().mean()

    optimizer = torch.optim.Rprop(module.parameters())
    made = capture(cloud(0, 4, 2), module=module, optimizers=[optimizer], training_loss=training_loss)
    assert set(Sharpness().measure(made).values[""]) == {"sharpness", "residual", "n_hvp", "converged", "exact"}


@pytest.mark.parametrize(
    ("probe", "options"),
    [(Persistence, {"max_dim": -1}), (Persistence, {"betti_scale": 0.0}), (Sharpness, {"tolerance": 1.0})],
)
def test_parameters_are_checked(probe, options):
    with pytest.raises(ValueError, match="expected"):
        probe(**options)


def test_clouds_stay_as_they_were_gathered():
    weight = nn.Parameter(cloud(0, 4, 3))
    clouds = Clouds([group(n=4)], {"w": weight}).gather()
    before = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1.0)
    assert torch.equal(clouds["g"], before)
    assert not clouds["g"].requires_grad
