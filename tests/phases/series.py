"""Short series of measurements, and drawn ones, as the tests of the state machine feed them in."""

import math

from hypothesis import strategies as st

from lightning_topo.measurement import Measurement
from lightning_topo.phases import EdgeSource, PhaseRules

QUICK = PhaseRules(hold_steps=3)


def ratios(values, group="net.0"):
    return [Measurement(k, 0, "distortion", group, {"critical_ratio": v}) for k, v in enumerate(values, start=1)]


def sharpnesses(values, name="sharpness_ratio"):
    return [Measurement(10 * k, 0, "sharpness", "", {name: v}) for k, v in enumerate(values)]


def persistences(values, name="betti_0"):
    return [Measurement(k, k, "persistence", "net.0", {name: v}) for k, v in enumerate(values)]


def distinct(values):
    return [Measurement(k, 0, "distortion", "net.0", {"distinct_neurons": float(v)}) for k, v in enumerate(values)]


def losses(values, first=0):
    return [Measurement(first + k, 0, "training", "", {"loss": v}) for k, v in enumerate(values)]


def coverage(begins, ends, state, group="net.0", **bound):
    return Measurement(ends, 0, "coverage", group, {"from": float(begins), "state": float(state)} | bound)


def names(run):
    return [(event.name.value, event.step) for event in run.detected]


def in_any_order(state):
    """A state in words, its groups sorted."""
    plain = state.to_dict()
    return {name: sorted(map(repr, v.items())) if isinstance(v, dict) else repr(v) for name, v in plain.items()}


def lines(probe, group, names, numbers):
    return st.builds(lambda *v: (probe, group, dict(zip(names, v, strict=True))), *numbers)


counts, jumps = st.integers(1, 6).map(float), st.floats(0.0, 2.0)
starts, states = (st.integers(0, most).map(float) for most in (60, 4))
measurements = st.lists(
    st.one_of(
        *(
            lines(
                "distortion",
                g,
                ("critical_ratio", "distinct_neurons", "twins_split"),
                (st.floats(0.0, 3.0), counts, counts),
            )
            for g in "ab"
        ),
        *(lines("persistence", g, ("betti_0", "betti_1", "log_bottleneck_0"), (counts, counts, jumps)) for g in "ab"),
        lines("sharpness", "", ("sharpness_ratio", "eta_lambda"), (st.floats(0.0, 2.0), st.floats(0.0, 2.0))),
        *(lines("edge", "", (source.quantity,), (st.floats(0.0, 2.0),)) for source in EdgeSource),
        *(lines("coverage", g, ("from", "state"), (starts, states)) for g in "ab"),
        *(lines("fate", g, ("vanishing_neurons", "aligned_clusters"), (counts, counts)) for g in "ab"),
        lines("training", "", ("loss",), (st.floats(0.0, 2.0) | st.sampled_from([math.nan, math.inf]),)),
    ),
    max_size=60,
).map(lambda found: [Measurement(k, k // 7, p, g, v) for k, (p, g, v) in enumerate(found)])
