"""Every model of the zoo that needs no other package, found and proved."""

from collections.abc import Mapping

import pytest
import torch
from torch import nn

from benchmarks.zoo import Found, is_installed, peak_bytes, row, search, summary, with_samples
from benchmarks.zoo_models import ZOO, Entry
from lightning_topo.neurons import NeuronGroup, ParamSlice

# Groups expected, by name of the model; gradients by torch.func vanish in the float64 of the verification.
EXPECTED: Mapping[str, int] = {
    "mlp-hardswish": 2, "mobilenet-v3-blocks": 8, "lstm": 2, "gru-bidirectional": 2, "transformer": 22, "bilinear": 3,
    "sparse-autoencoder": 1, "radial-basis": 1, "deep-sets": 3, "committee": 1, "unfold-mixer": 1, "two-towers": 1,
    "complex-weights": 2,
}  # fmt: skip
OF_TORCH = [entry for entry in ZOO if entry.name in EXPECTED]


@pytest.mark.parametrize("entry", OF_TORCH, ids=[entry.name for entry in OF_TORCH])
def test_all_groups_are_verified_and_hardly_anything_is_left(entry: Entry) -> None:
    torch.manual_seed(0)
    found = search(entry.build())
    assert [(group.name, group.reason) for group in found.groups if group.status != "verified"] == []
    assert len(found.groups) == EXPECTED[entry.name]
    assert found.share < 0.06
    assert found.unexplained < 0.02


@pytest.mark.parametrize("name", ["falcon", "falcon-40b", "beit", "mamba2", "bart"])
def test_heads_that_were_absent(name: str) -> None:
    pytest.importorskip("transformers")
    [entry] = [entry for entry in ZOO if entry.name == name]
    torch.manual_seed(0)
    found = search(entry.build())
    assert {group.status for group in found.groups} == {"verified"}
    assert "channel" in {g.kind for g in found.groups} if name == "mamba2" else "head" in {g.kind for g in found.groups}
    assert found.share < 0.02


def test_entries_in_no_group_are_counted() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    found = search((model, torch.randn(4, 5)))
    assert found.uncovered == {"2.bias": 3}
    assert found.reasons == {"2.bias": "axis 0: an output of the model"}
    assert found.share == 3 / sum(p.numel() for p in model.parameters())


def test_inputs_with_more_samples() -> None:
    inputs = {"x": torch.arange(6.0).view(2, 3), "deep": [torch.tensor([7, 8])], "flag": True}
    more = with_samples(inputs, 3)
    assert more["x"].tolist() == [[0, 1, 2], [3, 4, 5], [0, 1, 2]]
    assert more["deep"][0].tolist() == [7, 8, 7]
    assert more["flag"] is True
    with pytest.raises(ValueError, match="one first axis, of samples"):
        with_samples((torch.zeros(4, 3), torch.zeros(2, 9)), 8)


def test_a_row_of_the_table() -> None:
    group = NeuronGroup("g", "unit", 4, (), (ParamSlice("w"),), "verified")
    groups = [group, group.with_status("incoming_only", "why"), group.with_status("inert", "why")]
    reasons = {"b": "axis 0: classes", "c": "axis 0: written in parts"}
    found = Found(groups, {"b": 5, "c": 2, "d": 1}, 100, 1.25, reasons, 7.0, 1.5)
    assert row("model", found).split() == [
        "model", "3", "1", "1", "1", "8.0%", "3.0%", "1.2", "7", "1.5", "3", "unit",
    ]  # fmt: skip
    assert "1 of 3 groups; 3.00% of the trainable entries without" in summary([found])
    assert summary([found]).endswith(
        "median 7 training steps and 1.5 times their memory; of the 1 with steps of 0.1 s or more 7, at most 7"
    )
    assert summary([Found(groups, {}, 1, 0.5, {}, 7.0, 1.5)]).endswith("1.5 times their memory")


def test_costs_are_those_of_the_search_over_a_step() -> None:
    torch.manual_seed(0)
    found = search((nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(4, 5)), costs=True)
    assert found.unexplained == 0.0
    assert found.steps > 1.0
    assert found.memory > 1.0
    assert peak_bytes(lambda: torch.zeros(1000)) == 4000


def test_names_are_distinct_and_packages_are_looked_up() -> None:
    assert len({entry.name for entry in ZOO}) == len(ZOO)
    assert is_installed(ZOO[0])
    assert not is_installed(Entry("none", "no_such_package_anywhere", ZOO[0].build))
