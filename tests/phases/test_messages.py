"""What each event says happened, and what the user can do."""

import math

from lightning_topo.measurement import Measurement
from lightning_topo.phases import DETECTED, DetectorState, observe, replay
from tests.phases.series import distinct, losses, names, persistences, ratios, sharpnesses


def test_breakdown_names_its_group_and_pair():
    values = {"critical_ratio": math.inf, "critical_i": 3.0, "critical_j": 7.0}
    _, (event,) = observe(DetectorState(), Measurement(1, 0, "distortion", "enc.fc", values))
    assert event.group == "enc.fc"
    assert "neurons 3 and 7" in event.message
    assert "enc.fc" in event.message


def test_a_jump_is_told_once_with_its_bound_until_the_diagram_rests():
    assert names(replay(persistences([0.1, 0.8, 0.9, 0.5, 0.8, 0.3, 0.8], "log_bottleneck_1"))) == [
        ("diagram_jump", 1),
        ("diagram_jump", 6),
    ]
    for bound, said in (({"log_bottleneck_bound": 1.5}, "allows up to 1.5"), ({}, "There is no bound")):
        (event,) = replay([Measurement(1, 0, "persistence", "g", {"log_bottleneck_0": 0.9} | bound)]).detected
        assert said in event.message
    (event,) = replay(persistences([math.inf], "log_bottleneck_0")).detected
    assert "infinity" in event.message


def test_every_event_of_a_replay_says_what_happened_and_what_to_do():
    found = [
        *losses([math.nan]),
        *distinct([8, 7]),
        *persistences([1, 2, 2]),
        *persistences([2.0], "log_bottleneck_0"),
        Measurement(1, 0, "distortion", "g", {"critical_ratio": 2.0, "twins_split": 1.0}),
        *persistences([0, 3, 3], "vanishing_neurons"),
        *persistences([9, 3, 3], "aligned_clusters"),
        *sharpnesses([3.0] * 3, "eta_lambda"),
        *sharpnesses([3.0] * 3),
    ]
    events = replay(found).detected
    assert {e.name for e in events} == DETECTED - {
        "topology_restored",
        "edge_of_stability_exit",
        "curvature_bound_restored",
    }
    assert all(e.message and e.remedy for e in events)


def message_of(values, probe="persistence", before=()):
    (event,) = replay([*before, Measurement(9, 0, probe, "net.0", values)]).detected
    return event.message


def test_loops_from_landmarks_come_with_their_error():
    loops = {"log_bottleneck_1": 0.9, "landmark_error": 0.25}
    assert "error of up to 0.25 of the diameter." in message_of(loops)
    assert "too large to conclude anything" in message_of(loops | {"vacuous_1": 1.0})
    assert "landmarks, with" not in message_of({"log_bottleneck_0": 0.9, "landmark_error": 0.25})


def test_numbers_that_are_not_known_are_left_out_of_a_message():
    closed = {"distinct_neurons": 5.0, "total_contraction": 0.0}
    assert message_of(closed, "distortion").endswith("5 distinct ones are left.")
    assert message_of({"distinct_neurons": 5.0}, "distortion", distinct([8])).endswith("are left, 8 before.")
    shrinking, shrunk = persistences([0, 40], "vanishing_neurons"), {"vanishing_neurons": 40.0}
    assert "vanishing: 40 are far" in message_of(shrunk, "fate", shrinking)
    assert "vanishing: 40 of 64 are far" in message_of(shrunk | {"measured_neurons": 64.0}, "fate", shrinking)


def test_the_end_of_a_breakdown_names_its_beginning_and_its_worst_step():
    run = replay(ratios([0.1, 1.2, 3.5, 1.1, *[0.1] * 100]))
    assert "began at step 2 and was worst at step 3, at 3.5 times" in run.detected[-1].message
