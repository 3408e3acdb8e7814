"""What an exact pass takes: a few times the clouds of one group, however many groups there are."""

from contextlib import nullcontext

import pytest
from torch import nn

from benchmarks.zoo import peak_bytes
from lightning_topo.probes import Capture, Clouds, Distortion, Fate
from lightning_topo.probes import _distortion as exact
from lightning_topo.probes import _probe as probe
from tests.probes.captures import N_GROUPS, groups_of


def captured(groups, states):
    before, after, reference, last = (Clouds(groups, state) for state in states)
    return Capture(1, 0, nn.Identity(), groups, after, before, reference, [], nullcontext, last=last)


@pytest.fixture
def without_room(monkeypatch):
    """Limits as small against these clouds as the real ones are against a large network's."""
    monkeypatch.setattr(probe, "MOST_KEPT", 0)
    monkeypatch.setattr(exact, "MOST_WAITING", 0)


@pytest.mark.parametrize("size", [(640, 600), (64, 400, 12), (12, 60_000)], ids=["units", "heads", "wide heads"])
@pytest.mark.parametrize(("measure", "most"), [(Distortion, 14.0), (Fate, 9.0)])
def test_an_exact_pass_takes_a_few_times_one_group(without_room, size, measure, most):
    groups, states = groups_of(*size)
    one = states[0]["w0"].nbytes
    found = []
    peak = peak_bytes(lambda: found.append(measure().measure(captured(groups, states))))
    assert len(found[0].values) == N_GROUPS
    assert not found[0].failures
    if measure is Distortion:
        assert all("span_ratio" in values and "total_expansion" in values for values in found[0].values.values())
    assert peak < most * one  # of all groups, four clouds each would take 32


def test_what_waits_for_others_of_its_shape_is_limited(monkeypatch):
    groups, states = groups_of(16, 50)
    plain = Distortion().measure(captured(groups, states))
    one = 3 * states[0]["w0"].nbytes
    together = []
    given = exact.distortions
    monkeypatch.setattr(exact, "distortions", lambda *clouds: together.append(len(clouds[0])) or given(*clouds))
    for most, expected in ((1 << 23, [8]), (2 * one, [3, 3, 2]), (0, [1] * 8)):
        monkeypatch.setattr(exact, "MOST_WAITING", most)
        together.clear()
        assert Distortion().measure(captured(groups, states)).values == plain.values
        assert together == expected
