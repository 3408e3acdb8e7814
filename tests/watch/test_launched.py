"""Bounds on their way to the host: what is read is what was sent."""

import torch

from lightning_topo._watch.launched import Launched


def test_values_are_those_that_were_sent():
    values, here = torch.tensor([0.5, float("inf"), 1.0]), {"w": torch.zeros(2)}
    sent = Launched.of(here, here, torch.zeros(2), values, is_path=True, has_doubt=True)
    assert sent.values() == [0.5, float("inf"), 1.0]
    assert (sent.is_path, sent.has_doubt, sent.before is here) == (True, True, True)
    # A list of its own: who takes the last value off does not take it from the next reader.
    sent.values().pop()
    assert len(sent.values()) == 3
