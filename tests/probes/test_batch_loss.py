"""The loss on a batch, whole or in parts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_topo.probes import BatchLoss


def test_parts_need_a_batch_with_samples():
    assert [w for w, _ in BatchLoss(lambda b: b["x"].sum(), {"x": torch.ones(5), "n": 3}).parts(2)] == [0.4, 0.4, 0.2]
    labels = BatchLoss(lambda b: torch.tensor(float(len(b[1]))), (torch.ones(5, 2), ["a", "b", "c", "d", "e"]))
    assert [loss().item() for _, loss in labels.parts(3)] == [3.0, 2.0]
    with pytest.raises(ValueError, match="first dimension"):
        BatchLoss(lambda b: b, 3.0).parts(2)
    with pytest.raises(ValueError, match="at least 1"):
        BatchLoss(lambda b: b, torch.ones(3)).parts(0)


@given(st.integers(1, 20), st.integers(1, 25))
def test_the_weighted_parts_of_a_mean_are_the_mean(n, size):
    batch = torch.arange(float(n)).double().square()
    loss = BatchLoss(lambda b: b["x"].mean() + b["shift"], {"x": batch, "shift": torch.tensor(3.0)})
    parts = loss.parts(size)
    assert [round(weight * n) for weight, _ in parts] == [len(part) for part in batch.split(size)]
    assert float(sum(weight * part() for weight, part in parts)) == pytest.approx(float(loss()))
    assert loss.n_samples == n


def test_only_what_counts_samples_is_cut():
    seen = []
    batch = {"x": torch.arange(6.0), "table": torch.ones(5, 6), "names": ["a"] * 6, "pair": ["p", "q"], "n": 7}
    for _, part in BatchLoss(lambda b: seen.append(b) or torch.tensor(0.0), batch).parts(4):
        part()
    assert [len(b["x"]) for b in seen] == [4, 2]
    assert [len(b["names"]) for b in seen] == [4, 2]
    assert all(b["table"].shape == (5, 6) and b["pair"] == ["p", "q"] and b["n"] == 7 for b in seen)
    assert torch.equal(torch.cat([b["x"] for b in seen]), batch["x"])
