"""Whoever keeps a callback when its training is over keeps what it has found, and none of its copies."""

import gc

import pytest
import torch

from lightning_topo import Distortion, Sharpness, TopologyMonitor, TopologyStepGuard
from tests.callbacks.training import Classifier, fit

WIDTH = 333
"""An axis that nothing else has."""

KINDS = {
    "monitor": lambda: TopologyMonitor(report=False, verbose=False),
    "measured at every step": lambda: TopologyMonitor(
        [Distortion(1), Sharpness(2)], report=False, verbose=False, max_overhead=None
    ),
    "guard": lambda: TopologyStepGuard(0.5),
}


def of_width() -> list[torch.Tensor]:
    gc.collect()
    return [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor) and WIDTH in one.shape]


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_that_is_over_leaves_no_copies_behind(tmp_path, kind):
    callback, module = KINDS[kind](), Classifier(width=WIDTH)
    trainer = fit(module, [callback], root=tmp_path, max_steps=6)
    theirs = {id(p) for p in module.parameters()} | {id(p.grad) for p in module.parameters()}
    assert len(theirs) == 2 * len(list(module.parameters()))
    left = [tuple(one.shape) for one in of_width() if id(one) not in theirs]
    assert left == []
    assert callback.groups
    assert callback.state_dict()
    trainer.save_checkpoint(tmp_path / "after.ckpt")
