"""Checkpoint states in which any one value is odd: each is taken over or refused, and a run goes on from it."""

import copy
import math
import warnings

import pytest
import torch

from lightning_topo import TopologyEarlyStopping, TopologyStepGuard
from lightning_topo._watch.checkpoint import SavedWatch, saved_place, saved_watch
from lightning_topo.measurement import Measurement, StepState
from lightning_topo.outputs._feed import Findings
from lightning_topo.outputs._gates import StopRules, StopState, advance, reason_to_stop
from lightning_topo.phases import DetectorState, observe

INF = math.inf
ODD = [
    torch.zeros(3),
    INF,
    -INF,
    math.nan,
    -1,
    10**400,
    1e308,
    0,
    True,
    None,
    "",
    "x",
    "\x00",
    "9" * 5000,
    [],
    [[]],
    {},
    {"x": INF},
    b"x",
]


def measured(step):
    coverage = {"from": step - 1.0, "state": float(StepState.BOUNDED), "bound": 0.5}
    own = {"critical_ratio": 1.5 if step % 7 == 0 else 0.1, "distinct_neurons": 8.0 - step % 3, "twins_split": 1.0}
    own |= {
        "betti_0": float(step % 2),
        "log_bottleneck_0": 0.4,
        "vanishing_neurons": float(step),
        "aligned_clusters": 1.0,
    }
    yield Measurement(step, 0, "training", "", {"loss": math.nan if step == 9 else 1.0 / (1 + step)})
    yield Measurement(step, 0, "distortion", "net.0", own)
    yield Measurement(step, 0, "coverage", "net.0", coverage)
    edge = {"sharpness_ratio": 1.2, "batch_sharpness_ratio": 1.0, "critical_sharpness": 1.0, "eta_lambda": 2.5}
    yield Measurement(step, 0, "sharpness", "", edge)


def followed(state, steps):
    """The state behind these steps, and how many events they made."""
    n = 0
    for step in steps:
        for measurement in measured(step):
            state, events = observe(state, measurement)
            n += len(events)
    return state, n


def leaves(plain, path=()):
    """Where every value of nested containers stands, and every container."""
    yield path
    items = plain.items() if isinstance(plain, dict) else enumerate(plain) if isinstance(plain, list | tuple) else ()
    for key, value in items:
        yield from leaves(value, (*path, key))


def with_value(plain, path, value):
    """A copy with one value replaced."""
    if not path:
        return value
    changed = dict(plain) if isinstance(plain, dict) else list(plain)
    changed[path[0]] = with_value(changed[path[0]], path[1:], value)
    return changed


DETECTOR, N_EVENTS = followed(DetectorState(), range(1, 15))
WATCH = SavedWatch(None, "a" * 32, 14, DETECTOR, awaited={"persistence": (12,)}, rate=0.1).to_dict()
WATCH |= {"slots": {"distortion": [1, 2, 3]}, "dirpath": "runs/topology"}


@pytest.mark.parametrize("path", list(leaves(WATCH)), ids=str)
def test_a_monitor_goes_on_from_any_state_or_says_that_it_cannot(path):
    assert N_EVENTS > 5
    for odd in ODD:
        state = with_value(WATCH, path, odd)
        saved, event = saved_watch(state, 14, 0)
        assert (saved is None) == (event is not None or (odd is None and path == ()))
        saved_place(state)
        if saved is None:
            continue
        again, _ = followed(saved.detector, range(19, 21))
        assert DetectorState.from_dict(again.to_dict()) is not None
        assert saved.under_way()[:1] in ("", " ")


GATE = StopState(7, {"topology_breakdown": 1}, 2, True, "topology_breakdown at step 3").to_dict()


@pytest.mark.parametrize("path", list(leaves(GATE)), ids=str)
@pytest.mark.parametrize("make", [TopologyEarlyStopping, TopologyStepGuard])
def test_a_gate_and_a_guard_do_too(make, path):
    still = Measurement(8, 0, "persistence", "net.0", {"log_bottleneck_0": 0.01})
    for odd in ODD:
        callback = make()
        state = copy.deepcopy(callback.state_dict())
        if "counted" in state:
            state["counted"] = with_value(GATE, path, odd)
        else:
            state = {name: odd if name != "version" else value for name, value in state.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            callback.load_state_dict(state)
        assert callback.state_dict().keys() == make().state_dict().keys()
        if "counted" in state:
            rules = StopRules(patience=3)
            reason_to_stop(advance(callback._counted, Findings(8, 0, (still,)), rules), rules)
