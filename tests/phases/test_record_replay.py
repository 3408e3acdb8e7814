"""A record replayed: from all of its measurements, or from its events where lines are missing."""

import math

from hypothesis import given
from hypothesis import strategies as st

from lightning_topo.measurement import Measurement, StepState
from lightning_topo.phases import EventName, Phase, RecordReplayer, TopologyEvent, replay, replay_events, replay_record
from tests.phases.series import coverage, losses, measurements, ratios


def test_a_record_without_coverage_says_what_it_said():
    said = TopologyEvent(EventName.INSTABILITY, 12, 0, message="said then")
    old = [
        *(Measurement(k, 0, "distortion", "net.0", {"critical_ratio": 0.1}) for k in range(5)),
        *(Measurement(k, 0, "sharpness", "", {"directional_ratio": 1.0}) for k in range(5, 15)),
        *losses([math.nan], 15),
    ]
    seen = replay_record(old, [said], complete=True)
    assert [(e.name, e.message) for e in seen.detected] == [("instability", "said then")]
    assert seen.phases[""] == ((0, Phase.PRESERVED),)
    new = replay_record([coverage(0, 1, StepState.EXACT), *old], [said], complete=True)
    assert {e.name for e in new.detected} == {"edge_of_stability_enter", "instability"}
    assert new.phases[""][-1] == (15, Phase.UNKNOWN)


RATIOS = st.lists(st.sampled_from([0.1, 0.5, 1.2]), max_size=12)
STRETCHES = st.lists(st.tuples(RATIOS, RATIOS, st.integers(0, 101), st.floats(0.0, 1.5)), max_size=6)


@given(STRETCHES)
def test_the_events_alone_give_the_phases_of_all_measurements(stretches):
    """What a breakdown and the edge leave in the events is all that their phases need."""
    found = [*ratios([0.1], "a"), *ratios([0.1], "b")]
    for of_a, of_b, calm, sharp in stretches:
        for group, values in (("a", [*of_a, *[0.1] * calm]), ("b", of_b)):
            for value in values:
                found.append(Measurement(found[-1].step + 1, 0, "distortion", group, {"critical_ratio": value}))
        for name in ("sharpness_ratio", "eta_lambda"):
            found += [Measurement(found[-1].step + 1 + k, 0, "sharpness", "", {name: sharp}) for k in range(5)]
    whole = replay(found)
    again = replay_record(found, whole.detected, complete=False)
    assert again.detected == whole.detected
    assert again.phases == whole.phases


@given(measurements, st.integers(0, 60))
def test_a_replay_may_be_looked_at_before_its_end(found, at):
    is_covered = any(m.probe == "coverage" for m in found)
    replayer = RecordReplayer(is_covered=is_covered)
    for m in found[:at]:
        replayer.take(m)
    early = replayer.result()
    for m in found[at:]:
        replayer.take(m)
    whole = replay_record(found, [], complete=True)
    assert repr(replayer.result().detected) == repr(whole.detected)
    assert replayer.result().phases == whole.phases
    assert repr(early.detected) == repr(whole.detected[: len(early.detected)])
    assert replayer.n_dropped == 0


def test_of_a_group_that_was_measured_late_nothing_is_known_before():
    at_edge = TopologyEvent(EventName.EDGE_OF_STABILITY_ENTER, 5, 0)
    seen = replay_events([at_edge], {"a": 1, "late": 9})
    assert seen.phases["a"] == ((1, Phase.PRESERVED), (5, Phase.EDGE_OF_STABILITY))
    assert seen.phases["late"] == ((9, Phase.EDGE_OF_STABILITY),)
    assert replay_events([], {}).phases == {"": ()}
