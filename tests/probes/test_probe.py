"""The contract of a probe: clouds are gathered when asked for, and stay as they were."""

import pytest
import torch
from torch import nn

from lightning_topo.homology import persistence
from lightning_topo.neurons import NeuronGroup
from lightning_topo.probes import Clouds, Probe, ProbeResult, ProbeUnavailable, Sharpness, StepEdge, StepSharpness
from lightning_topo.probes import _probe as probe
from lightning_topo.probes._probe import CloudMissing, blocks, refuse_complex
from tests.probes.captures import by_hand, cloud, groups_of, one_group


def test_clouds_stay_as_they_were_gathered():
    weight = nn.Parameter(cloud(0, 4, 3))
    clouds = Clouds([one_group(n=4)], {"w": weight}).gather()
    before = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1.0)
    assert torch.equal(clouds["g"], before)
    assert not clouds["g"].requires_grad


def test_only_few_clouds_stay_gathered(monkeypatch):
    groups, states = groups_of(16, 50)
    one = states[0]["w0"].nbytes
    monkeypatch.setattr(probe, "MOST_KEPT", 2 * one)
    clouds = Clouds(groups, states[0])
    first = [clouds[group.name] for group in groups]
    again = [clouds[group.name] is cloud for group, cloud in zip(groups, first, strict=True)]
    assert again == [True] * 2 + [False] * 6
    assert clouds.shape("g7") == (16, 50)
    assert all(torch.equal(clouds[group.name], cloud) for group, cloud in zip(groups, first, strict=True))
    assert list(clouds.only(["g1", "g7", "none"])) == ["g1", "g7"]


def test_a_group_of_another_process_or_one_that_failed_is_missing_with_its_reason():
    clouds = Clouds(
        [one_group("here", n=4), one_group("lost", n=4)], {"w": cloud(0, 4, 3)}, failures={"lost": "no memory"}
    )
    assert list(clouds) == ["here", "lost"]
    with pytest.raises(CloudMissing, match=r"^no memory$"):
        clouds["lost"]
    with pytest.raises(KeyError, match="'elsewhere' are not on this process"):
        clouds["elsewhere"]
    gathered = clouds.gather()
    assert list(gathered) == ["here"]
    with pytest.raises(ValueError, match="no memory"):
        gathered["lost"]


def test_a_shape_is_known_without_gathering(monkeypatch):
    group = one_group(n=4, blocks=(2,))
    clouds = Clouds([group], {"w": cloud(0, 2, 4, 3)})
    truth = group.gather({"w": cloud(0, 2, 4, 3)}).shape
    monkeypatch.setattr(NeuronGroup, "gather", lambda *_: pytest.fail("it was gathered"))
    assert clouds.shape("g") == tuple(truth) == (8, 3)
    assert Clouds((), {}, {"g": cloud(0, 5, 2)}).shape("g") == (5, 2)


def test_blocks_are_cut_in_their_order():
    points = torch.arange(12.0).view(6, 2)
    assert [block.tolist() for block in blocks(points, one_group(n=3, blocks=(2,)))] == [
        points[:3].tolist(),
        points[3:].tolist(),
    ]


def test_named_numbers_are_a_result_for_the_whole_network():
    plain = ProbeResult.of({"norm": 2.0})
    assert plain == ProbeResult({"": {"norm": 2.0}})
    full = ProbeResult({"g": {"betti_0": 1.0}}, diagrams={"g": persistence(cloud(0, 4, 2), 0)})
    assert ProbeResult.of(full) is full


def test_a_probe_has_a_name_and_can_measure():
    class Nameless:
        def measure(self, capture):
            return {}

    assert not isinstance(Nameless(), Probe)
    Nameless.name = "nameless"
    assert isinstance(Nameless(), Probe)
    error = ProbeUnavailable("no loss", remedy="Call watch.loss.")
    assert (str(error), error.remedy) == ("no loss", "Call watch.loss.")


@pytest.mark.parametrize("measures", [Sharpness(), StepEdge(), StepSharpness()], ids=lambda one: one.name)
def test_complex_parameters_are_refused_by_name_where_they_are_trained(measures):
    module = nn.Linear(2, 2, dtype=torch.cfloat)
    with pytest.raises(ProbeUnavailable, match="weight is complex, and the edge of stability"):
        measures.measure(by_hand(torch.zeros(2, 2), module=module))
    refuse_complex(by_hand(torch.zeros(2, 2), module=module.requires_grad_(False)))
