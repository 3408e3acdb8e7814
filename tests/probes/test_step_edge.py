"""The edge of single batches and steps, in trainings by hand."""

import json
import math
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from lightning_topo import Sharpness
from lightning_topo.demo import digits
from lightning_topo.loops import TopologyWatch
from lightning_topo.probes import BatchLoss, Capture, Clouds, StepEdge

X, Y = digits(64).tensors


def squared(net, rows):
    return 0.5 * ((net(X[rows]) - Y[rows]) ** 2).sum(1).mean()


def watched(tmp_path, make, *, steps=12, batch=8, every=4, probes=None, clip=None, seed=0, state=None):
    """Train a small network by hand, and return the lines of the record and the watch."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 10))
    optimizer = make(list(net.parameters()))
    optimizers = optimizer if isinstance(optimizer, list) else [optimizer]
    probes = [Sharpness(every_n_steps=every)] if probes is None else probes
    options = {"max_overhead": None, "verbose": False, "report": False, "on_error": "raise"}
    watch = TopologyWatch(net, optimizer, probes, dirpath=tmp_path / "topology", **options)
    if state is not None:
        watch.load_state_dict(state)
    with watch:
        for step in range(steps):
            rows = torch.arange(step * batch, (step + 1) * batch) % 64
            with watch.step(rows):
                watch.loss(squared(net, rows)).backward()
                if clip is not None:
                    nn.utils.clip_grad_norm_(net.parameters(), clip)
                for one in optimizers:
                    one.step()
                    one.zero_grad()
    lines = (tmp_path / "topology" / "measurements.jsonl").read_text().splitlines()[1:]
    return [json.loads(line) for line in lines], watch


def of(lines, probe):
    return {line["step"]: line for line in lines if line["probe"] == probe}


def momentum(params):
    return torch.optim.SGD(params, lr=0.02, momentum=0.9)


def test_small_batches_have_a_ratio_by_default_and_batches_that_are_all_alike_have_no_noise(tmp_path):
    small = of(watched(tmp_path / "small", momentum)[0], "step_edge")
    assert list(small) == [4, 8, 12]
    for values in small.values():
        assert 0.0 < values["batch_sharpness_ratio"] < 2.0
        assert 0.0 <= values["batch_noise"] <= 1.0
    full = of(watched(tmp_path / "full", momentum, batch=64, steps=4)[0], "step_edge")
    assert all(values["batch_noise"] == pytest.approx(0.0, abs=1e-4) for values in full.values())


def test_the_last_batches_are_remembered_through_a_checkpoint(tmp_path):
    lines, watch = watched(tmp_path, momentum)
    state = watch.state_dict()
    assert state["watch"]["carried"]["step_edge"]["count"] == 2 * len(of(lines, "step_edge"))
    torch.save(state, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    lines, watch = watched(tmp_path / "again", momentum, state=state)
    later = watch.state_dict()["watch"]["carried"]["step_edge"]
    new = 2 * len(of(lines, "step_edge"))
    assert new > 0
    assert later["count"] == state["watch"]["carried"]["step_edge"]["count"] + new
    assert later["window"][:-new] == state["watch"]["carried"]["step_edge"]["window"][-12 + new :]


def test_a_cut_of_the_rate_shows_in_the_next_value(tmp_path):
    def cut_at_20(params):
        optimizer = momentum(params)
        n_steps = 0

        def count(optimizer, *_):
            nonlocal n_steps
            n_steps += 1
            if n_steps == 20:
                optimizer.param_groups[0]["lr"] /= 10

        optimizer.register_step_post_hook(count)
        return optimizer

    lines, _ = watched(tmp_path, cut_at_20, steps=28)
    ratios = {step: values["batch_sharpness_ratio"] for step, values in of(lines, "step_edge").items()}
    assert ratios[16] > 4 * ratios[20]
    assert ratios[24] < 2 * ratios[20]


@pytest.mark.parametrize(
    "damaged", [3, {}, {"window": [[1.0]], "count": 1, "start": 1.0}, {"window": [], "count": 0, "start": -1.0}]
)
def test_a_damaged_memory_is_left_out(tmp_path, damaged):
    _, watch = watched(tmp_path, momentum, steps=4)
    state = watch.state_dict()
    state["watch"]["carried"]["step_edge"] = damaged
    lines, watch = watched(tmp_path / "again", momentum, state=state)
    assert watch.state_dict()["watch"]["carried"]["step_edge"]["count"] == 2 * len(of(lines, "step_edge")) > 0


@pytest.mark.parametrize("batch_sharpness", [None, 8])
def test_of_the_batches_edge_there_is_one_series(tmp_path, batch_sharpness):
    probes = [Sharpness(every_n_steps=4, batch_sharpness=batch_sharpness)]
    lines, _ = watched(tmp_path, momentum, probes=probes)
    told = [line["step"] for line in lines if "batch_sharpness_ratio" in line]
    assert told == [4, 8, 12]


class Lion(torch.optim.Optimizer):
    """Steps by the sign of a mean gradient."""

    def __init__(self, params, lr=1e-3):
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.99)})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                mean = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p -= group["lr"] * (0.9 * mean + 0.1 * p.grad).sign()
                mean.lerp_(p.grad, 0.01)


def test_without_a_threshold_the_step_s_own_batch_tells(tmp_path):
    lines, _ = watched(tmp_path, Lion, steps=16)
    found = of(lines, "step_edge")
    assert list(found) == [5, 8, 12, 16]  # at step 4 it asks for the step that it will measure
    for values in found.values():
        assert values["critical_sharpness"] >= 0.0
        assert "batch_sharpness_ratio" not in values
    # On a step far below its edge both ratios are the same quadratic's.
    assert any(
        values["critical_sharpness"] == pytest.approx(values["directional_ratio"], rel=0.25)
        for values in found.values()
        if "directional_ratio" in values
    )


def test_muon_beside_adamw_is_found_at_its_edge(tmp_path):
    def both(params):
        matrices = [p for p in params if p.ndim == 2]
        return [torch.optim.Muon(matrices, lr=0.05), torch.optim.AdamW([p for p in params if p.ndim == 1], lr=1e-3)]

    probes = [Sharpness(every_n_steps=30), StepEdge(every_n_steps=4)]
    lines, watch = watched(tmp_path, both, steps=64, batch=64, probes=probes)
    assert [values["converged"] for values in of(lines, "sharpness").values()] == [1.0, 1.0]
    (entered,) = (e for e in watch.watch.events if e.name == "edge_of_stability_enter")
    assert "source: directional" in entered.message or "source: critical" in entered.message


@pytest.mark.parametrize("clip", [None, 0.05])
def test_the_threshold_is_that_of_the_clipped_step(tmp_path, clip):
    rate = 0.1
    lines, _ = watched(tmp_path, lambda p: torch.optim.SGD(p, lr=rate), steps=8, batch=64, clip=clip)
    for values in of(lines, "sharpness").values():
        scale = values["sharpness_ratio"] / (rate / 2 * values["sharpness"])
        assert scale == pytest.approx(1.0, rel=1e-4) if clip is None else scale < 0.5


def test_an_optimizer_that_takes_over_has_the_threshold(tmp_path):
    torch.manual_seed(0)
    net = nn.Linear(64, 10)
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.01), torch.optim.SGD(net.parameters(), lr=0.03)]
    with TopologyWatch(
        net,
        optimizers,
        [Sharpness(every_n_steps=3)],
        dirpath=tmp_path / "topology",
        max_overhead=None,
        verbose=False,
        report=False,
    ) as watch:
        for step in range(6):
            with watch.step():
                watch.loss(squared(net, torch.arange(64))).backward()
                optimizers[step >= 3].step()
                net.zero_grad()
    lines = [json.loads(line) for line in (tmp_path / "topology" / "measurements.jsonl").read_text().splitlines()[1:]]
    rates = [2 * v["sharpness_ratio"] / v["sharpness"] for v in of(lines, "sharpness").values()]
    assert rates == pytest.approx([0.01, 0.03], rel=1e-4)


def test_bad_input_is_a_recorded_skip_with_its_reason_and_training_goes_on(tmp_path):
    def train(name, loss_of, make=momentum, steps=6):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 10))
        optimizer = make(list(net.parameters()))
        options = {"max_overhead": None, "verbose": False, "report": False}
        path = tmp_path / name
        with TopologyWatch(net, optimizer, [Sharpness(every_n_steps=2)], dirpath=path, **options) as watch:
            for step in range(steps):
                with watch.step():
                    loss = loss_of(net, step)
                    watch.loss(loss)
                    if loss.requires_grad:
                        loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
        lines = [json.loads(line) for line in (path / "measurements.jsonl").read_text().splitlines()[1:]]
        failed = [e.message for e in watch.watch.events if e.name == "probe_failed"]
        return lines, failed

    rows = torch.arange(8)
    lines, failed = train("zero", lambda net, step: 0.0 * squared(net, rows))
    assert not failed
    assert all(values["sharpness"] == 0.0 for values in of(lines, "sharpness").values())
    lines, failed = train("constant", lambda net, step: squared(net, rows).detach())
    assert not of(lines, "sharpness")
    assert any("no update has moved a parameter by the loss" in reason for reason in failed)
    lines, failed = train("nan", lambda net, step: squared(net, rows) * (math.nan if step >= 2 else 1.0))
    assert list(of(lines, "sharpness")) == [2]
    assert any("finite" in reason for reason in failed)


def test_a_warm_start_on_an_overtaken_eigenvector_is_found():
    """Two blocks that share nothing: a start in one would never see that the other's eigenvalue has passed it."""
    torch.manual_seed(0)
    module = nn.Module()
    module.one, module.other = (nn.Parameter(torch.randn(6, dtype=torch.float64)) for _ in range(2))
    weights = {"one": 3.0, "other": 1.0}

    def loss(_):
        return 0.5 * (weights["one"] * module.one.square().sum() + weights["other"] * module.other.square().sum())

    @contextmanager
    def training_loss(loss_fn):
        yield BatchLoss(loss, torch.zeros(4))

    def capture(previous):
        clouds = Clouds([], {})
        sgd = torch.optim.SGD(module.parameters(), lr=0.1)
        return Capture(1, 0, module, [], clouds, None, clouds, [sgd], training_loss, previous)

    result = Sharpness().measure(capture(None))
    assert result.values[""]["sharpness"] == pytest.approx(3.0)
    weights["other"] = 9.0
    for _ in range(2):
        result = Sharpness().measure(capture(result))
    assert result.values[""]["sharpness"] == pytest.approx(9.0)


def of_batch(net, batch):
    x, y = batch
    return 0.5 * ((net(x) - y) ** 2).sum(1).mean()


def accumulated(tmp_path, size, k, *, loss_fn=None, split=False):
    """Train on 16 samples a step, as k batches of `size`, `split` in one step of the loop; the lines of `StepEdge`."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 10))
    optimizer, place = momentum(list(net.parameters())), 0
    options = {"max_overhead": None, "verbose": False, "report": False, "on_error": "raise"}
    probes = [Sharpness(every_n_steps=8, loss_fn=loss_fn)]
    with TopologyWatch(net, optimizer, probes, dirpath=tmp_path / "topology", **options) as watch:
        for _ in range(32):
            for _ in range(1 if split else k):
                rows = [torch.arange(place + i * size, place + (i + 1) * size) % 64 for i in range(k if split else 1)]
                batches = [(X[own], Y[own]) for own in rows]
                with watch.step(batches[0]):
                    for batch in batches:
                        watch.loss(of_batch(net, batch) / k, scale=1 / k).backward()
                        place += size
                    if place % 16 == 0:
                        optimizer.step()
                        optimizer.zero_grad()
    lines = (tmp_path / "topology" / "measurements.jsonl").read_text().splitlines()[1:]
    return of(map(json.loads, lines), "step_edge"), watch


def test_batches_that_are_accumulated_have_the_ratio_of_one_batch_of_all(tmp_path):
    (whole, _), (parts, _) = (accumulated(tmp_path / f"{k}", 16 // k, k) for k in (1, 4))
    assert list(whole) == list(parts)
    last = max(whole)
    assert parts[last]["batches_per_update"] == 4.0
    assert "batches_per_update" not in whole[last]
    for name in ("batch_sharpness_ratio", "batch_sharpness"):
        assert parts[last][name] == pytest.approx(whole[last][name], rel=0.05)


def test_where_it_is_not_known_how_many_batches_an_update_takes_there_is_no_ratio_and_an_event_says_so(tmp_path):
    lines, watch = accumulated(tmp_path, 4, 4, split=True)
    assert lines == {}
    (event,) = (e for e in watch.watch.events if e.name == "gap")
    assert "how many batches an update takes together is not known" in event.message


def test_with_a_loss_of_its_own_two_batches_are_that_of_the_step_and_the_one_before(tmp_path):
    found, _ = accumulated(tmp_path, 16, 1, loss_fn=of_batch)
    assert len(found) >= 2
    assert all(0.0 < values["batch_sharpness_ratio"] < 2.0 for values in found.values())
