"""The detector's state: written into a checkpoint and read again, those of older versions too."""

import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_topo.phases import DetectorState, Phase, observe, replay
from lightning_topo.phases._edge import BandState, EdgeState
from lightning_topo.phases._state import Breakdown
from tests.phases.series import QUICK, in_any_order, losses, measurements


@given(measurements, st.integers(0, 60))
def test_a_checkpoint_in_between_changes_nothing(found, at):
    first, second = found[:at], found[at:]
    state = DetectorState()
    events = []
    for m in first:
        state, new = observe(state, m, QUICK)
        events += new
    state = DetectorState.from_dict(state.to_dict())
    for m in second:
        state, new = observe(state, m, QUICK)
        events += new
    whole = replay(found, QUICK)
    # In words: from Python 3.13 on, NaN in a dataclass is not equal to itself.
    assert repr(tuple(events)) == repr(whole.detected)
    assert in_any_order(state) == in_any_order(whole.state)


def test_a_state_from_before_these_events_is_read():
    old = {name: DetectorState().to_dict()[name] for name in ("measured", "curvature", "edge", "breakdowns")}
    assert DetectorState.from_dict(old) == DetectorState()


def test_a_state_with_the_edge_of_one_source_is_read():
    plain = DetectorState().to_dict() | {
        "edge": {"inside": True, "recent": [1.0, 1.0, 1.0]},
        "stability": {"losses": [1.0], "ratio": 2.0, "span": {"inside": False, "quiet": 0}},
    }
    state = DetectorState.from_dict(plain)
    assert state.phase is Phase.EDGE_OF_STABILITY
    assert state.edge.source == "sharpness"
    assert state.stability.losses == (1.0,)


def test_a_state_from_before_levels_were_kept_goes_on_from_its_recent_losses():
    run = replay(losses([2.0, *[1.0] * 60]))
    plain = run.state.to_dict()
    for name in ("calm", "climb"):
        del plain["stability"][name]
    state = DetectorState.from_dict(plain)
    assert (state.stability.calm, state.stability.climb.level) == (None, None)
    state, _ = observe(state, losses([1.0], 61)[0])
    assert state.stability.climb.level == 6.0


BROKEN = {"a": Breakdown(3, 1.5, 4)}
INSIDE = BandState(inside=True)


@pytest.mark.parametrize(
    ("known", "of_a", "of_all"),
    [
        ({}, Phase.UNKNOWN, Phase.UNKNOWN),
        ({"measured": True}, Phase.PRESERVED, Phase.PRESERVED),
        ({"measured": True, "curvature": INSIDE}, Phase.UNPROTECTED, Phase.UNPROTECTED),
        (
            {"curvature": INSIDE, "edge": EdgeState({"sharpness": INSIDE}, "sharpness")},
            Phase.EDGE_OF_STABILITY,
            Phase.EDGE_OF_STABILITY,
        ),
        ({"curvature": INSIDE, "finite": False}, Phase.UNKNOWN, Phase.UNKNOWN),
        ({"breakdowns": BROKEN, "finite": False}, Phase.BREAKDOWN, Phase.BREAKDOWN),
        ({"breakdowns": {"b": Breakdown(3, 1.5, 4)}, "curvature": INSIDE}, Phase.UNPROTECTED, Phase.BREAKDOWN),
    ],
)
def test_the_highest_phase_that_holds_is_the_phase(known, of_a, of_all):
    state = DetectorState(**known)
    assert (state.phase_of("a"), state.phase) == (of_a, of_all)


@given(measurements)
def test_a_state_is_plain_enough_for_a_checkpoint_that_runs_no_code(found):
    state, file = replay(found, QUICK).state, io.BytesIO()
    torch.save(state.to_dict(), file)
    file.seek(0)
    again = DetectorState.from_dict(torch.load(file, weights_only=True))
    assert in_any_order(again) == in_any_order(state)


@pytest.mark.parametrize(
    "changed",
    [
        {"curvature": None},
        {"curvature": {"inside": True}},
        {"breakdowns": {"a": {"since": 3}}},
        {"breakdowns": ["a"]},
        {"coverage": {"a": [3, 9]}},
        {"edge": {"bands": {}, "source": "sharpness"}},
        {"edge": {"bands": {}, "source": "nothing"}},
        {"distinct": {"a": {"floor": "many", "recent": []}}},
        {"stability": DetectorState().to_dict()["stability"] | {"climb": {"n_losses": 1}}},
    ],
)
def test_what_is_no_state_is_refused(changed):
    plain = DetectorState().to_dict()
    assert DetectorState.from_dict(plain) == DetectorState()
    with pytest.raises((KeyError, TypeError, AttributeError, ValueError)):
        DetectorState.from_dict(plain | changed)
