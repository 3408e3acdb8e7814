"""A user's own probes in training: their names, their values and their failures."""

import math

import pytest
import torch

from lightning_topo import Distortion, Period, ProbeResult, Sharpness, TopologyMonitor
from lightning_topo.quantities import OUR_PROBES, RESERVED_PROBES, RESERVED_VALUES
from tests.callbacks.training import Classifier, fit, happened


class Mine:
    """Measures at every step what `values(capture)` returns."""

    period = Period(1)

    def __init__(self, values, name="mine"):
        self.values, self.name = values, name

    def measure(self, capture):
        return self.values(capture)


def watched(tmp_path, *probes, **options):
    monitor = TopologyMonitor(probes, verbose=False, report=False, max_overhead=None)
    trainer = fit(Classifier(), [monitor], root=tmp_path, **options)
    return monitor, {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("topology/")}


def recorded(monitor, probe):
    return [m for m in monitor.record.measurements if m.probe == probe]


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(RESERVED_PROBES | OUR_PROBES))
def test_the_monitor_s_own_names_are_refused_at_once(name):
    with pytest.raises(ValueError, match=f"not the monitor's own, got '{name}': rename it"):
        TopologyMonitor([Mine(lambda capture: {}, name)])


def test_values_named_like_ours_are_published_as_they_are_and_mean_nothing_to_us(tmp_path):
    def values(capture):
        return {
            "residual": 0.5,
            "exact": 1.0,
            "converged": 1.0,
            "rmse": 0.25,
            "weight_norm": 2.0,
            "expansion": 3.0 if capture.step == 2 else 1.0,
            "sharpness_ratio": 7.0 if capture.step > 3 else 0.0,
        }

    monitor, published = watched(tmp_path, Mine(values))
    last = recorded(monitor, "mine")[-1].values
    assert last == {
        "residual": 0.5,
        "exact": 1.0,
        "converged": 1.0,
        "rmse": 0.25,
        "weight_norm": 2.0,
        "expansion": 1.0,
        "sharpness_ratio": 7.0,
    }
    for name, value in last.items():  # the last value, where ours of the name would be the largest
        assert published[f"topology/{name}"] == pytest.approx(value)
    assert happened(monitor.events) == []  # no edge of stability
    assert published["topology/phase"] == -1


def test_where_ours_has_a_key_a_user_s_goes_under_the_probe_s_name(tmp_path):
    def values(capture):
        return {"weight_norm": 9.0, "phase": 42.0, "sharpness": -1.0, "critical_ratio": 5.0}

    monitor, published = watched(tmp_path, Mine(values, "two"), Distortion(), Sharpness(every_n_steps=4))
    assert published["topology/weight_norm"] == 9.0
    for name, value in (("phase", 42.0), ("sharpness", -1.0), ("critical_ratio", 5.0)):
        assert published[f"topology/two/{name}"] == value
    assert published["topology/phase"] in (0.0, 1.0)
    assert published["topology/sharpness"] == pytest.approx(recorded(monitor, "sharpness")[-1].values["sharpness"])
    ratios = [m.values["critical_ratio"] for m in recorded(monitor, "distortion")]
    assert published["topology/critical_ratio"] == pytest.approx(max(ratios))
    assert happened(monitor.events) == []


@pytest.mark.parametrize("name", sorted(RESERVED_VALUES))
def test_a_value_named_like_a_line_s_field_harms_its_own_key_alone(tmp_path, name):
    monitor, published = watched(
        tmp_path, Mine(lambda capture: {name: 1.0, "weight_norm": 2.0}), Distortion(), max_steps=3
    )
    assert [(m.step, m.values) for m in recorded(monitor, "mine")] == [(k, {"weight_norm": 2.0}) for k in (1, 2, 3)]
    assert published["topology/weight_norm"] == 2.0
    assert f"topology/{name}" not in published
    assert len(recorded(monitor, "distortion")) == 2 * 3
    assert monitor.record.n_unreadable == 0
    (event,) = happened(monitor.events)
    assert (event.name, event.step, event.group) == ("probe_failed", 1, "")
    assert f"mine is not recorded: expected a name that is not a field of the record's lines, got '{name}'" in (
        event.message
    )


NO_NUMBERS = {"text": "much", "nothing": None, "several": torch.ones(2), "complex": 1j, "list": [1.0]}


@pytest.mark.parametrize("value", NO_NUMBERS.values(), ids=NO_NUMBERS)
def test_a_value_that_is_no_number_harms_its_own_key_alone(tmp_path, value):
    monitor, published = watched(tmp_path, Mine(lambda capture: {"odd": value, "even": 2.0}), max_steps=2)
    assert [m.values for m in recorded(monitor, "mine")] == [{"even": 2.0}] * 2
    assert published["topology/even"] == 2.0
    (event,) = happened(monitor.events)
    assert "expected a number for 'odd'" in event.message


def test_numbers_of_every_kind_are_taken(tmp_path):
    monitor, _ = watched(
        tmp_path,
        Mine(lambda capture: {"a": 1, "b": True, "c": torch.tensor(2), "d": torch.ones(1, 1), "e": math.inf}),
        max_steps=1,
    )
    assert recorded(monitor, "mine")[0].values == {"a": 1.0, "b": 1.0, "c": 2.0, "d": 1.0, "e": math.inf}
    assert happened(monitor.events) == []


# --- failures ---------------------------------------------------------------------------------------------------------

KINDS = {
    "values of the network": lambda capture: {"x": 1.0},
    "values by group": lambda capture: ProbeResult({group.name: {"x": 1.0} for group in capture.groups}),
    "nothing to say": lambda capture: ProbeResult(),
}


@pytest.mark.parametrize("values", KINDS.values(), ids=KINDS)
def test_a_failure_is_an_event_each_time_it_comes_again(tmp_path, values):
    def broken(capture):
        if capture.step in (2, 3, 6):
            raise RuntimeError(f"broken at {capture.step}")
        return values(capture)

    monitor, _ = watched(tmp_path, Mine(broken))
    failed = [(e.name, e.step, e.message) for e in happened(monitor.events)]
    assert failed == [("probe_failed", k, f"mine failed: broken at {k}") for k in (2, 6)]


def test_so_is_that_of_one_group(tmp_path):
    def broken(capture):
        first, *others = (group.name for group in capture.groups)
        if capture.step in (2, 3, 6):
            return ProbeResult({name: {"x": 1.0} for name in others}, failures={first: "no such luck"})
        return ProbeResult({name: {"x": 1.0} for name in (first, *others)})

    monitor, _ = watched(tmp_path, Mine(broken))
    failed = [(e.name, e.step, e.group) for e in happened(monitor.events)]
    assert failed == [("probe_failed", 2, "net.0"), ("probe_failed", 6, "net.0")]


def test_so_is_that_of_one_value(tmp_path):
    monitor, _ = watched(tmp_path, Mine(lambda c: {"x": "bad" if c.step in (2, 3, 6) else 1.0, "y": 1.0}))
    failed = [(e.name, e.step) for e in happened(monitor.events)]
    assert failed == [("probe_failed", 2), ("probe_failed", 6)]


def test_a_probe_that_asks_for_the_next_step_and_fails_there_waits_for_its_time(tmp_path):
    """Else it would fail at every step to come, each time at the cost of a measurement."""
    met = []

    class Eager(Mine):
        period = Period(4)

        def measure(self, capture):
            met.append(capture.step)
            if len(met) > 1:
                raise ValueError("not today")
            return ProbeResult({"": {"x": 1.0}}, again_after_step=True)

    watched(tmp_path, Eager(None), max_epochs=3)
    assert met[:3] == [4, 5, 8]
