"""Metrics: one truth with their functional twins, and good citizens of torchmetrics."""

import pickle
from collections.abc import Callable

import pytest
import torch
from torchmetrics import Metric, MetricCollection
from torchmetrics.wrappers import MetricTracker

from lightning_topo.metrics import (
    BettiNumbers,
    CriticalRatio,
    DiagramDistance,
    LipschitzDistortion,
    PersistenceEntropy,
    functional,
)
from tests.metrics.twins import EVERY, MAX_DIM, STEP_METRICS, cloud


@pytest.mark.parametrize(("make", "twin"), [STEP_METRICS[0], *STEP_METRICS[2:]])
def test_step_metrics_are_maxima(make, twin):
    metric = make()
    for seed in range(3):
        metric.update(cloud(seed), cloud(seed + 1))
    expected = torch.stack([twin(cloud(s), cloud(s + 1)) for s in range(3)]).amax(0).squeeze()
    torch.testing.assert_close(metric.compute(), expected)


@pytest.mark.parametrize(("make", "arity"), [(make, arity) for make, _, arity in EVERY])
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_partial_state_update_is_enough(make, arity, capsys):
    """`forward` with and without a full state update gives the same values, step by step."""
    reduced, full = make(), make()
    object.__setattr__(full, "full_state_update", True)
    assert not reduced.full_state_update
    for seed in range(4):
        clouds = [cloud(seed + i) for i in range(arity)]
        torch.testing.assert_close(reduced(*clouds), full(*clouds))
        torch.testing.assert_close(reduced.compute(), full.compute())


@pytest.mark.parametrize(("make", "arity"), [(make, arity) for make, _, arity in EVERY])
def test_pickling_keeps_the_state(make, arity):
    metric = make()
    metric.update(*[cloud(seed) for seed in range(arity)])
    again = pickle.loads(pickle.dumps(metric))
    torch.testing.assert_close(again.compute(), metric.compute())
    again.update(*[cloud(seed + 3) for seed in range(arity)])


def test_collection_and_tracker():
    collection = MetricCollection([CriticalRatio(), LipschitzDistortion()])
    tracker = MetricTracker(collection, maximize=[False, False])
    for size in (0.3, 0.1):
        tracker.increment()
        tracker.update(cloud(0), cloud(0) + size * cloud(1))
    best, steps = tracker.best_metric(return_step=True)
    assert steps == {"CriticalRatio": 1, "LipschitzDistortion": 1}
    expected = functional.critical_ratio(cloud(0), cloud(0) + 0.1 * cloud(1))
    assert best["CriticalRatio"] == pytest.approx(float(expected))
    topology = MetricCollection([BettiNumbers(MAX_DIM), PersistenceEntropy(MAX_DIM)])
    topology.update(cloud(0))
    assert set(topology.compute()) == {"BettiNumbers", "PersistenceEntropy"}


@pytest.mark.parametrize(("make", "arity"), [(make, arity) for make, _, arity in EVERY])
def test_plot(make, arity):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    metric = make()
    values = [metric(*[cloud(seed + i) for i in range(arity)]) for seed in range(3)]
    for shown in (None, values):
        figure, axes = metric.plot(shown)
        assert axes.has_data()
        assert not [text.get_text() for text in axes.texts if "Optimal" in text.get_text()]  # there is none
        if isinstance(metric, CriticalRatio):
            assert [1.0, 1.0] in [list(line.get_ydata()) for line in axes.lines]
        pyplot.close(figure)


def test_bad_arguments():
    with pytest.raises(ValueError, match="max_dim >= 0"):
        BettiNumbers(max_dim=-1)
    with pytest.raises(ValueError, match="expected a distance of bottleneck"):
        DiagramDistance(distance="hausdorff")
    with pytest.raises(ValueError, match="1 of 2 rows"):
        CriticalRatio().update(torch.tensor([[0.0], [torch.nan]]), torch.zeros(2, 1))


@pytest.mark.parametrize(("make", "arity"), [(make, arity) for make, _, arity in EVERY])
def test_replicas_are_not_counted_twice(make: Callable[[], Metric], arity: int) -> None:
    """Two processes that hold the same weights find what one finds; torchmetrics lets the other be made up."""
    gathered = []

    def both(state: torch.Tensor, group: object = None) -> list[torch.Tensor]:
        gathered.append(state)
        return [state, state.clone()]

    alone, replica = make(), make()
    replica.distributed_available_fn, replica.dist_sync_fn = (lambda: True), both
    for seed in range(2):
        for metric in (alone, replica):
            metric.update(*[cloud(seed + i) for i in range(arity)])
    torch.testing.assert_close(replica.compute(), alone.compute())
    assert gathered
