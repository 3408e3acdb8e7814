"""The tests' own checker sees types and shapes, in functions and in dataclasses."""

import pytest
import torch
from jaxtyping import TypeCheckError

from lightning_topo.geometry import step_distortion
from lightning_topo.measurement import Measurement
from lightning_topo.outputs.page.live import pause


def test_a_wrong_type_is_seen_with_and_without_shapes():
    assert pause(1, 0.1, 15) == 15.0
    with pytest.raises(TypeCheckError):
        pause("1", 0.1, 15.0)
    with pytest.raises(TypeCheckError):
        Measurement("1", 0, "training")
    with pytest.raises(TypeCheckError):
        step_distortion([[0.0]], torch.zeros(2, 3))


def test_shapes_of_one_call_are_compared():
    with pytest.raises(TypeCheckError):
        step_distortion(torch.zeros(2, 3), torch.zeros(3, 3))
