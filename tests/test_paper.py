"""The reproductions of benchmarks/paper: their shapes and probes against truth, and small versions of all of them."""

import importlib
import re
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

from benchmarks.paper import EXPERIMENTS
from benchmarks.paper.__main__ import main
from benchmarks.paper.clouds import figure_eight, genus_two, sphere
from benchmarks.paper.merging import ClosePairs
from benchmarks.paper.models import CNN, GPT, warm_cosine
from benchmarks.paper.outcome import Table, spread
from benchmarks.paper.settings import CRITICAL, images, turned
from benchmarks.paper.shapes import LONG, TwoLayer, critical_eta, crossings, loops, problem
from benchmarks.paper.sphere import load
from benchmarks.paper.training import squared_error
from lightning_topo import find_neuron_groups, persistence, step_distortion

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize(("cloud", "n_loops"), [(figure_eight(80), 2), (genus_two(400), 4)], ids=["eight", "genus 2"])
def test_the_shapes_have_their_loops_and_no_others(cloud, n_loops):
    bars = loops(cloud)
    assert (bars > LONG).sum() == n_loops
    assert bars[n_loops] < 0.9 * bars[n_loops - 1]
    assert len(torch.unique(cloud, dim=0)) == len(cloud)


def test_the_sphere_is_one():
    cloud = sphere(200, 10, radius=0.3)
    torch.testing.assert_close(cloud.norm(dim=1), torch.full((200,), 0.3))
    assert torch.linalg.matrix_rank(cloud, tol=1e-4) == 3
    diagram = persistence(cloud, max_dim=2)
    at = 0.25 * diagram.diameter
    assert [int(((bars.births <= at) & (at < bars.deaths)).sum()) for bars in diagram] == [1, 0, 1]


def test_crossings_count_where_curves_cut():
    assert crossings(figure_eight(40)) == 0
    square = torch.tensor([[0.0, 0.0], [2.0, 0.0], [2.0, 2.0], [0.0, 2.0]])
    assert crossings(torch.cat([square, square + 1.0])) == 2
    assert crossings(torch.cat([square, square + 5.0])) == 0
    bow_tie = square[[0, 2, 1, 3]]
    assert crossings(torch.cat([bow_tie, square + 5.0])) == 1


def test_pairs_are_turned_where_their_difference_points_back():
    start = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 5.0]])
    assert turned(start, start) == 0
    assert turned(start, 0.1 * start) == 0
    assert turned(start, start @ torch.tensor([[0.6, 0.8], [-0.8, 0.6]])) == 0  # by less than a right angle
    assert turned(start, -start) == 3
    assert turned(start, start[[1, 0, 2]]) == 1


def test_images_are_the_digits_drawn_larger():
    x, y = images()
    assert x.shape == (1797, 784)
    assert float(x.std()) == pytest.approx(1.0, rel=1e-5)
    assert x.mean(0).abs().max() < 1e-4
    assert y.bincount().min() > 170


def test_the_first_step_is_critical_at_the_critical_step_size():
    shape = figure_eight(60)
    net, data = TwoLayer(shape), problem(shape, seed=0)
    eta = critical_eta(net, data)
    x, y = data.tensors
    squared_error(net(x), y).backward()
    moved = shape.double() - eta * net.hidden.weight.grad.double()
    assert step_distortion(shape.double(), moved).critical_ratio == pytest.approx(1.0, rel=1e-5)


class Seen:
    """A capture of one group."""

    def __init__(self, before, after):
        self.neurons = {"net.0": torch.tensor(after)}
        self.before = None if before is None else {"net.0": torch.tensor(before)}


def test_a_pair_is_turned_around_by_passing_the_point_where_it_is_closest():
    start = [[0.0, 0.0], [1.0, 0.0], [0.0, 5.0]]
    assert ClosePairs().measure(Seen(None, start)) == {"closest": 1.0, "turned": 0.0}
    nearer = [[0.25, 0.0], [0.75, 0.0], [0.0, 5.0]]
    assert ClosePairs().measure(Seen(start, nearer)) == {"closest": 0.5, "turned": 0.0}
    past = [[0.75, 0.0], [0.25, 0.0], [0.0, 5.0]]
    assert ClosePairs().measure(Seen(start, past)) == {"closest": 0.5, "turned": 1.0}


def test_the_schedule_warms_up_and_comes_down_to_nothing():
    factors = [warm_cosine(step, 100, 10) for step in range(101)]
    assert factors[0] == 0.1
    assert factors[9] == factors[10] == 1.0
    assert factors[100] == pytest.approx(0.0)
    assert np.all(np.diff(factors[:10]) > 0)
    assert np.all(np.diff(factors[10:]) < 0)
    assert warm_cosine(0, 100, 0) == 1.0


@pytest.mark.parametrize(
    ("model", "inputs", "n_groups"),
    [(CNN(), torch.randn(8, 1, 8, 8), 3), (GPT(32, 2, 2), torch.randint(128, (2, 16)), 8)],
    ids=["CNN", "GPT"],
)
def test_all_neurons_of_the_models_are_proved(model, inputs, n_groups):
    groups = find_neuron_groups(model, inputs)
    assert len(groups) == n_groups
    assert {group.status for group in groups} == {"verified"}


def test_other_data_can_be_given(tmp_path):
    pixels, classes = np.arange(24, dtype=np.uint8).reshape(4, 2, 3), np.array([0, 1, 2, 1])
    np.savez(tmp_path / "images.npz", x=pixels, y=classes)
    x, y = load(tmp_path / "images.npz")
    assert x.shape == (4, 6)
    assert float(x.mean()) == pytest.approx(0.0, abs=1e-6)
    assert y.tolist() == [0, 1, 2, 1]


def test_tables_are_markdown():
    table = Table("What it is.", [{"a": 0.123456, "b": True}, {"a": None, "b": spread([2.0, 1.0])}])
    assert table.markdown().splitlines()[2:] == [
        "| a | b |",
        "| --- | --- |",
        "| 0.123 | yes |",
        "| - | 1 - 2 |",
    ]


def test_unknown_experiments_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["figures"])
    assert "expected names among shapes, sphere, edge, merging, warmup, settings" in capsys.readouterr().err


def check_shapes(rows):
    for row in rows:
        assert row["largest r"] == pytest.approx(row["eta / eta*"], rel=0.01) or row["eta / eta*"] > 1
        assert (row["steps with r >= 1"] == 0) == (row["eta / eta*"] < 1)
        assert row["of the start"] == (2 if row["shape"] == "figure eight" else 4)
        if row["shape"] == "figure eight":
            assert (row["crossings"] == 0) == (row["eta / eta*"] < 1)
        assert row["guaranteed"] <= row["of the start"]
        assert row["loss, last"] < row["loss, start"]


def check_sphere(rows):
    assert [row["b0, start"] for row in rows] == ["1"] * 6
    for name in ("GD", "Adam"):
        first, *_, last = [row for row in rows if row["optimizer"] == name]
        # At the first step both rules are linear in their learning rate.
        rates = last["lr"] / first["lr"]
        assert float(last["r, first step"]) == pytest.approx(rates * float(first["r, first step"]), rel=0.02)


def check_settings(rows):
    on_images, in_space = ([row for row in rows if column in row] for column in ("accuracy", "lr K"))
    slow, fast = (float(row["r, first step"]) for row in on_images)
    assert fast == pytest.approx(100 * slow, rel=0.02)  # Adam's first step is linear in its learning rate
    for row in in_space:
        r = float(row["r, first step"])
        assert r == pytest.approx(row["lr"] / CRITICAL, rel=0.01)
        assert (int(float(row["pairs turned, first step"])) > 0) == (r > 1)
        assert float(row["lr K / 2"]) == pytest.approx(float(row["lr K"]) / 2, rel=0.01)


def check_edge(rows):
    at_ten = [float(row["ratio at step 10"]) for row in rows]
    for value, low, high in zip(at_ten, (0.32, 0.10, 0.09, 0.01), (0.38, 0.13, 0.15, 0.02), strict=True):
        assert low <= value <= high
    assert all(float(row["r, largest"]) < 1 for row in rows)


def check_merging(rows):
    judged = [row for row in rows if "before the step" in row]
    assert len(judged) == 9
    for row in judged:
        assert row["next step turns a pair"] <= row["next step has r >= 1"] <= row["measurements"]
    trained = [row for row in rows if "lr" in row]
    assert all(row["steps that turn pairs"] <= row["steps with r >= 1"] for row in trained)
    assert any(row["steps that turn pairs"] for row in trained)
    # Curvature is measured at the start, too: behind steps that do not move, so that the first real one is judged.
    assert all(row["swap ratio, first"] is not None for row in trained)
    assert sum(row["measurements"] for row in judged if row["before the step"] == "swap >= 1") > 0
    first = {(row["setting"], row["seed"]): row for row in reversed(trained)}
    for row in trained:
        slowest, name = first[row["setting"], row["seed"]], "eta lambda, first"
        assert row[name] / row["lr"] == pytest.approx(slowest[name] / slowest["lr"], rel=0.02)


def check_warmup(rows):
    for model in ("CNN on digits", "GPT on source code"):
        without, warm = (float(row["r, first step"]) for row in rows if row["model"] == model and "warm-up" in row)
        assert without == pytest.approx(6 * warm, rel=0.02)
    layers = [row for row in rows if "neurons" in row]
    assert len(layers) == 3 + 8


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_command_makes_small_versions_that_come_out_right(name, tmp_path, capsys, monkeypatch):
    module = importlib.import_module(f"benchmarks.paper.{name}")
    seen, present = [], module.present
    monkeypatch.setattr(module, "present", lambda trials: seen.append(present(trials)) or seen[-1])
    main([name, "--small", "--out", str(tmp_path)])
    assert f"{name}: " in capsys.readouterr().out
    [outcome] = seen
    globals()[f"check_{name}"]([row for table in outcome.tables for row in table.rows])
    for figure in tmp_path.glob("*.png"):
        pixels = (255 * matplotlib.image.imread(figure)).astype(np.uint32)
        assert pixels.shape[1] > 1000
        red, green, blue, *_ = np.moveaxis(pixels, 2, 0)
        assert len(np.unique(red << 16 | green << 8 | blue)) > 100
    assert len(list(tmp_path.glob("*.png"))) == len(outcome.figures) > 0
    assert f"`python -m benchmarks.paper {name} --small`" in (tmp_path / f"{name}.md").read_text()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_evidence_is_there_and_spoken_of(name):
    text = (DOCS / "paper.md").read_text()
    page = DOCS / "paper" / f"{name}.md"
    assert f"`python -m benchmarks.paper {name}`" in page.read_text()
    assert f"paper/{name}.md" in text
    for figure in (DOCS / "paper").glob(f"{name}*.png"):
        assert f"](paper/{figure.name})" in text
    assert list((DOCS / "paper").glob(f"{name}*.png"))


def test_every_figure_and_table_of_the_page_exists():
    for target in re.findall(r"\]\((paper/[^)]+)\)", (DOCS / "paper.md").read_text()):
        assert (DOCS / target).is_file(), target
