"""The scripts under examples/ do what they say."""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from examples import concepts, gallery, hold_at_critical, modular_addition, stop_on_breakdown
from lightning_topo import persistence, read_record
from lightning_topo.measurement import Measurement

DOCS = Path(__file__).parent.parent / "docs"


def test_the_training_stops_at_the_first_step_at_or_above_the_critical_point(tmp_path):
    trainer, monitor, gate = stop_on_breakdown.train(growth=1.15, folder=tmp_path)
    worst = {}
    for m in read_record(monitor.dirpath).measurements:
        if m.probe == "distortion":
            worst[m.step] = max(worst.get(m.step, 0.0), m.values["critical_ratio"])
    *before, last = worst.values()
    assert 5 < len(worst) == trainer.global_step < 100
    assert max(before) < 1.0 <= last
    assert f"topology_breakdown at step {trainer.global_step}" in gate.stopping_reason


def test_the_script_says_why_it_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["stop_on_breakdown", "--growth", "1.3", "--folder", str(tmp_path)])
    stop_on_breakdown.main()
    said = capsys.readouterr().out
    assert "of 300 steps" in said
    assert "Training stops on topology: topology_breakdown at step" in said
    assert "times the critical one" in said


@pytest.fixture(scope="module")
def free(tmp_path_factory):
    """The course of a training whose learning rate stays as it is."""
    return hold_at_critical.train(None, 0.01, 120, tmp_path_factory.mktemp("free"))


@pytest.mark.parametrize("multiple", [0.002, 0.005])
def test_the_learning_rate_is_held_at_the_multiple(tmp_path, multiple, free):
    hold = hold_at_critical.HoldAtCritical(multiple, max_change=1.2)
    course = hold_at_critical.train(hold, 0.01, 120, tmp_path)
    assert hold_at_critical.geometric_mean(course.ratios[60:]) == pytest.approx(multiple, rel=0.3)
    assert hold_at_critical.geometric_mean(free.ratios[60:]) < 0.5 * multiple
    assert len(set(course.rates)) > 100
    assert course.losses[-1] < free.losses[-1]
    # The rule, once more by hand, from what was measured.
    log_critical, lr = math.log(course.rates[0] / course.ratios[0]), course.rates[0]
    for r, after in zip(course.ratios[1:], course.rates[2:], strict=False):
        lr = course.rates[course.rates.index(after) - 1]
        log_critical = 0.9 * log_critical + 0.1 * math.log(lr / r)
        assert after == pytest.approx(min(max(multiple * math.exp(log_critical), lr / 1.2), lr * 1.2, 1.0), rel=1e-6)
    again = hold_at_critical.HoldAtCritical(multiple)
    again.load_state_dict(hold.state_dict())
    assert again.log_critical == hold.log_critical


def test_an_embedding_that_learns_to_add_bends_into_loops(tmp_path):
    model, record, right = modular_addition.train(600, tmp_path / "topology")
    *_, last = modular_addition.loops(record).values()
    assert right > 0.9
    assert last > 1.5
    for seed in range(5):  # as many points at random have no such loop
        bars = persistence(torch.randn(23, 4, generator=torch.Generator().manual_seed(seed)))[1]
        assert (bars.deaths / bars.births).max() < 1.5
    assert sum(modular_addition.spectrum(model)[:2]) > 0.9
    assert {"tok_emb.rows", "hidden"} <= set(record.groups)


@pytest.mark.slow
@pytest.mark.parametrize("name", gallery.EXHIBITS)
def test_an_exhibit_trains_and_draws_what_it_promises(name, tmp_path, capsys):
    gallery.show(name, tmp_path, steps=22)
    said = json.loads((tmp_path / f"{name}.json").read_text())
    assert said["steps"] == 22
    for panel in gallery.EXHIBITS[name].panels:
        assert any(drawn.split()[0] == panel.quantity for drawn in said["drawn"]), panel.quantity
    assert (tmp_path / f"{name}.png").stat().st_size > 5_000
    assert gallery.EXHIBITS[name].title in capsys.readouterr().out


def test_a_chart_shows_the_groups_and_quantities_that_it_names():
    measured = [
        Measurement(1, 0, "fate", group, {"effective_neurons": value, "independent_neurons": 9.0})
        for group, value in (("hidden", 3.0), ("tok_emb", 2.0))
    ]
    record = SimpleNamespace(measurements=measured)
    every = gallery.Panel("effective_neurons", "").lines(record)
    assert every == {("effective_neurons", "hidden"): [(1, 3.0)], ("effective_neurons", "tok_emb"): [(1, 2.0)]}
    one = gallery.Panel("effective_neurons", "", beside="independent_neurons", groups=("tok_emb",)).lines(record)
    assert one == {("effective_neurons", "tok_emb"): [(1, 2.0)], ("independent_neurons", "tok_emb"): [(1, 9.0)]}


@pytest.mark.slow
def test_the_network_groks_and_its_neurons_come_together_meanwhile(tmp_path):
    record = gallery.grokking(tmp_path / "topology", 600)

    def course(quantity, group=""):
        return dict(gallery.series(record, quantity)[group])

    train, test = course("train_accuracy"), course("test_accuracy")
    assert train[100] == 1.0
    assert test[100] < 0.1 < 0.9 < test[600]
    for group in ("hidden", "tok_emb.rows"):
        effective = course("effective_neurons", group)
        assert effective[600] < 0.9 * effective[100]
    clusters = course("betti_0", "hidden")
    assert clusters[100] == 128 > 100 > clusters[600]
    changed = {event.step for event in record.events if event.name == "betti_changed"}
    assert changed
    assert 0.1 < test[min(changed)] < 0.9
    assert max(modular_addition.loops(record).values()) < 1.5  # as among points at random


def test_the_gallery_shows_every_exhibit():
    page = (DOCS / "gallery.md").read_text()
    for name in gallery.EXHIBITS:
        assert f"python -m examples.gallery {name}\n" in page
        assert f"(gallery/{name}.png)" in page
        assert f"numbers: gallery/{name}.json" in page


def test_the_pictures_of_the_concepts_are_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["concepts", "--out", str(tmp_path)])
    concepts.main()
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in (DOCS / "concepts").iterdir()}
