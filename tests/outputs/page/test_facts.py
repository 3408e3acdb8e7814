"""The summary of a run as facts, and what differs between runs."""

from dataclasses import replace
from pathlib import Path

from lightning_topo.measurement import Measurement
from lightning_topo.outputs.page._facts import differences, facts, settings, validation
from lightning_topo.outputs.page._model import Budget, run_view
from lightning_topo.outputs.record import RunRecord
from tests.outputs.page.covered import OPENED, ratio, record
from tests.outputs.page.synthetic import distortion

WHOLE = Budget.of(1)


def values_of(record: RunRecord, group: str, name: str) -> list[tuple[int, float]]:
    return [(m.step, m.values[name]) for m in record.measurements if m.group == group and name in m.values]


def test_facts_are_those_of_the_record(breakdown: RunRecord) -> None:
    found = {fact.name: fact.value for fact in facts(run_view(breakdown, "breakdown", WHOLE))}
    step, peak = max(values_of(breakdown, "net.0", "critical_ratio"), key=lambda point: point[1])
    assert found["Largest r"] == f"{peak:.3g} at step {step} in net.0"
    assert found["First breakdown"] == "at step 300 in net.0"
    assert found["Edge of stability reached"] == "never"
    assert found["Optimizer steps"] == "0 to 600"
    assert found["Neurons"] == "128"


def test_differences_are_named_and_come_first(demo: RunRecord, control: RunRecord) -> None:
    rows = differences([run_view(demo, "a", WHOLE), run_view(control, "b", WHOLE)])
    differing = {name: values for name, values, differs in rows if differs}
    assert differing["Optimizer steps"] == ("0 to 800", "0 to 400")
    assert differing["Edge of stability reached"][1] == "never"
    assert differing["Groups only in this run"] == ("net.2", "other")
    assert "First breakdown" not in differing
    assert [differs for *_, differs in rows] == sorted((differs for *_, differs in rows), reverse=True)


def test_merged_neurons_are_told() -> None:
    measurements = (distortion(0, "net.0", 0.0, 1.0, 1.0, 64), distortion(1, "net.0", 0.5, 0.0, 1.0, 60))
    view = run_view(RunRecord(Path("run"), "id", measurements), "run", WHOLE)
    assert {fact.name: fact.value for fact in facts(view)}["Neurons"] == "64, 4 of them merged"


def test_facts_say_how_far_the_record_goes() -> None:
    found = {fact.name: fact.value for fact in facts(run_view(record(*OPENED), "run", Budget.of(2)))}
    assert found["Steps measured or bounded"] == "17 of 20 (2 exact, 15 by bound, 3 open)"
    assert found["Largest bound of r"] == "0.4 in b, open steps apart"
    old = {fact.name: fact.value for fact in facts(run_view(record(ratio(1, 0.1)), "run", Budget.of(1)))}
    assert old["Steps measured or bounded"] == old["Largest bound of r"] == "not recorded"


def named(found):
    return {fact.name: fact.value for fact in found}


def test_of_a_run_without_measurements_nothing_is_made_up() -> None:
    found = named(facts(run_view(RunRecord(Path("run"), "id"), "run", WHOLE)))
    assert found["Optimizer steps"] == "none"
    assert found["Phase now"] == found["Highest phase"] == "Unknown"
    absent = {
        "Largest r",
        "First breakdown",
        "Edge of stability reached",
        "Curvature bound passed",
        "Loss now",
        "Neurons",
    }
    assert {name for name, value in found.items() if value == "not measured"} >= absent
    assert settings(run_view(RunRecord(Path("run"), "id"), "run", WHOLE)) == ()


def test_how_it_was_trained_is_as_far_as_the_record_says() -> None:
    training = {
        "optimizer": "SGD",
        "batch_size": 32,
        "gradient_clip_val": None,
        "scheduler": "",
        "hparams": {"width": 9},
    }
    about = {"training": training, "started": "2026-01-02T03:04:05+00:00", "seconds": 150.0, "timed_steps": 300}
    assert named(settings(run_view(RunRecord(Path("run"), "id", about=about), "run", WHOLE)))["Ended"].startswith(
        "not yet"
    )
    about["ended"] = "2026-01-02T03:06:35+00:00"
    rates = [
        Measurement(step, 0, "training", "", {"learning_rate": rate}) for step, rate in ((1, 0.1), (5, 0.4), (9, 0.2))
    ]
    record = RunRecord(Path("run"), "id", tuple(rates), about=about | {"versions": {"torch": "2.9"}})
    assert named(settings(run_view(record, "run", WHOLE))) == {
        "Optimizer": "SGD",
        "Learning rate": "0.1 at first, at most 0.4, 0.2 at last",
        "Batch size": "32",
        "width": "9",
        "Started": "2026-01-02 03:04:05 UTC",
        "Duration": "2 min",
        "Steps a second": "2",
        "Versions": "torch 2.9",
    }
    for broken in ({"training": [1], "seconds": "x", "versions": 3}, {"started": 7, "seconds": -1.0, "timed_steps": 4}):
        assert settings(run_view(replace(record, measurements=(), about=broken), "run", WHOLE)) == ()


def test_of_validation_the_last_value_counts() -> None:
    lines = [Measurement(step, 0, "validation", "", {"accuracy": value}) for step, value in ((1, 0.5), (9, 0.75))]
    assert named(validation(run_view(RunRecord(Path("run"), "id", tuple(lines)), "run", WHOLE))) == {"accuracy": "0.75"}


def test_a_run_does_not_differ_from_itself(demo: RunRecord) -> None:
    view = run_view(demo, "a", WHOLE)
    assert not any(differs for *_, differs in differences([view, view]))
