"""Displacements along the axes of the parameters against those of the gathered clouds."""

import pytest
import torch
from torch import nn

from lightning_topo.geometry import displacement_lengths
from lightning_topo.neurons import DisplacementMeter, find_neuron_groups, gather_rows
from lightning_topo.neurons._group import NeuronGroup, ParamSlice

HEADS = NeuronGroup(
    "attn",
    "head_dim",
    8,
    (4,),
    (ParamSlice("qkv", (("unflatten", 0, (3, 4, 8)),), (1, 2)), ParamSlice("out", (("unflatten", 1, (4, 8)),), (1, 2))),
)
EXPERTS = NeuronGroup("experts", "expert", 3, (), (ParamSlice("experts.*.weight"), ParamSlice("gate")))
# Rows of the queries alone, of each column.
QUERIES = NeuronGroup("queries", "residual", 32, (), (ParamSlice("qkv", (("narrow", 0, 0, 32),), (1,)),))
# A chunk of a chunk of the rows, as gates of a recurrent layer, and rows as features that were flattened.
GATES = NeuronGroup(
    "gates", "recurrent", 32, (), (ParamSlice("qkv", (("narrow", 0, 32, 64), ("narrow", 0, 16, 24)), (1,)),)
)
FLATTENED = NeuronGroup("flattened", "unit", 32, (), (ParamSlice("qkv", (("unflatten", 0, (3, 4, 8)),), (3,)),))
LARGE = NeuronGroup(
    "large",
    "unit",
    256,
    (),
    (
        ParamSlice("large", dims=(0,)),
        ParamSlice("large", dims=(1,)),
        ParamSlice("large", (("unflatten", 0, (2, 128)), ("narrow", 1, 64, 3)), (2,)),
        ParamSlice("large", (("narrow", 1, 3, 100), ("unflatten", 1, (4, 25))), (0,)),
    ),
)
ALL = [HEADS, EXPERTS, QUERIES, GATES, FLATTENED, LARGE]
SCALARS = NeuronGroup("scalars", "expert", 3, (), (ParamSlice("scale.*"), ParamSlice("gate")))


def state(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"qkv": (96, 32), "out": (32, 32), "gate": (3, 5), "large": (256, 256)}
    shapes |= {f"experts.{i}.weight": (4, 5) for i in range(3)}
    shapes |= {f"scale.{i}": () for i in range(3)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def of_clouds(groups, before, after):
    lengths = []
    for group in groups:
        clouds = (group.gather(tensors).unflatten(0, (group.n_blocks, group.n)) for tensors in (before, after))
        lengths.append(displacement_lengths(*clouds).flatten())
    return torch.cat(lengths)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_as_from_the_clouds(dtype):
    before, after = state(0, dtype), state(1, dtype)
    meter = DisplacementMeter.of([*ALL, SCALARS], before)
    for start, end in ((before, after), (after, before)):
        expected = of_clouds([*ALL, SCALARS], start, end)
        torch.testing.assert_close(meter.lengths(start, end), expected, rtol=1e-3, atol=0)


def test_complex_entries_count_with_both_parts():
    group = NeuronGroup("net", "unit", 4, (), (ParamSlice("w"), ParamSlice("w", dims=(1,)), ParamSlice("b")))
    before = {"w": torch.zeros(4, 4, dtype=torch.complex64), "b": torch.zeros(4)}
    after = {name: torch.randn_like(tensor) for name, tensor in before.items()}
    lengths = DisplacementMeter.of([group], before).lengths(before, after)
    truth = (after["w"].abs().square().sum(0) + after["w"].abs().square().sum(1) + after["b"].square()).sqrt()
    torch.testing.assert_close(lengths.float(), truth, rtol=1e-3, atol=0)
    assert bool((lengths >= truth).all())


def test_any_memory_format():
    group = NeuronGroup("net", "channel", 6, (), (ParamSlice("w"), ParamSlice("w", (("narrow", 1, 0, 6),), (1,))))
    before = {"w": torch.randn(6, 8, 3, 3).to(memory_format=torch.channels_last)}
    after = {"w": before["w"] + torch.randn(6, 8, 3, 3)}
    lengths = DisplacementMeter.of([group], before).lengths(before, after)
    torch.testing.assert_close(lengths, of_clouds([group], before, after), rtol=1e-3, atol=0)


def test_of_a_model_and_never_below_the_truth():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 3)
    )
    groups = find_neuron_groups(model, torch.randn(2, 3, 8, 8))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    after = {name: p + 1e-3 * torch.randn_like(p) for name, p in before.items()}
    lengths = DisplacementMeter.of(groups, before).lengths(before, after)
    truth = torch.cat([(g.gather(after).double() - g.gather(before).double()).norm(dim=1) for g in groups])
    assert bool((lengths >= truth).all())
    torch.testing.assert_close(lengths, truth, rtol=1e-3, atol=0)


def test_rows_alone():
    tensors, rows = state(0), torch.tensor([[0, 31], [9, 9]])
    assert torch.equal(gather_rows(HEADS, tensors, rows), HEADS.gather(tensors)[rows])


def test_what_does_not_fit():
    with pytest.raises(ValueError, match="expected tensors keyed by parameter name"):
        DisplacementMeter.of([HEADS], {"other": torch.zeros(2)})
    with pytest.raises(ValueError, match="got shape"):
        DisplacementMeter.of([HEADS], state(0) | {"qkv": torch.zeros(95, 32)})
    assert len(DisplacementMeter.of([], {}).lengths({}, {})) == 0


WINDOWS = NeuronGroup(
    "windows",
    "unit",
    256,
    (),
    (
        ParamSlice("large", (("narrow", 0, 3, 100),), (1,)),
        ParamSlice("large", (("narrow", 0, 250, 6),), (1,)),
        ParamSlice("large", (("narrow", 0, 60, 1), ("narrow", 1, 0, 256)), (1,)),
    ),
)


@pytest.mark.parametrize("in_cache", [1, 700, 1 << 12, 1 << 15])
@pytest.mark.parametrize("transposed", [False, True])
def test_in_stretches_as_from_the_clouds(monkeypatch, in_cache, transposed):
    def laid(tensors):
        return {name: x.T.contiguous().T if transposed and x.dim() == 2 else x for name, x in tensors.items()}

    monkeypatch.setattr("lightning_topo.neurons._displacements._SMALL", 8)
    monkeypatch.setattr("lightning_topo.neurons._displacements._IN_CACHE", in_cache)
    before, after = laid(state(0)), laid(state(1))
    groups = [*ALL, SCALARS, WINDOWS]
    meter = DisplacementMeter.of(groups, before)
    assert (len(meter.large) > len({part.name for part in meter.large})) is (in_cache < 256 * 256)
    for start, end in ((before, after), (after, before)):
        torch.testing.assert_close(meter.lengths(start, end), of_clouds(groups, start, end), rtol=1e-4, atol=0)


def test_stretches_need_little_memory():
    group = NeuronGroup("net", "unit", 2048, (), (ParamSlice("w"), ParamSlice("w", dims=(1,))))
    before, after = torch.zeros(2048, 2048), torch.randn(2048, 2048)
    meter = DisplacementMeter.of([group], {"w": before})
    assert meter.memory.nbytes < after.nbytes / 10
    expected = (after.double().square().sum(0) + after.double().square().sum(1)).sqrt()
    found = meter.lengths({"w": before}, {"w": after})
    assert (found >= expected).all()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)
