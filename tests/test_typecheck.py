"""The tests' own checker sees types and shapes, in functions and in dataclasses."""

import pytest
import torch
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from lightning_topo.geometry import step_distortion
from lightning_topo.measurement import Measurement
from lightning_topo.outputs.page._live import pause
from tests import typecheck


@pytest.fixture(autouse=True)
def every_call_is_looked_at(monkeypatch):
    monkeypatch.setattr(typecheck, "ALWAYS", 1 << 60)


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


@typecheck._jaxtyped(typechecker=typecheck.check)
def first_rows(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"] | None, n: int) -> Float[Tensor, "n d"]:
    return (x if y is None else y)[:n]


def test_what_has_passed_once_hides_no_later_fault():
    x = torch.zeros(3, 2)
    for _ in range(2):
        assert first_rows(x, None, 3).shape == (3, 2)
        assert first_rows(x, x, n=3).shape == (3, 2)
        for wrong in (torch.zeros(2, 2), torch.zeros(3, 2, dtype=torch.int64), "x", [x]):
            with pytest.raises(TypeCheckError):
                first_rows(x, wrong, 3)
        with pytest.raises(TypeCheckError):
            first_rows(x, None, "3")
        with pytest.raises(TypeCheckError):  # the arguments' kinds are known, the result is another
            first_rows(x, None, 2)
    assert first_rows(torch.zeros(4, 2), None, 9).shape == (4, 2)


def test_of_many_calls_the_first_are_looked_at_and_then_one_in_so_many(monkeypatch):
    @typecheck._jaxtyped(typechecker=typecheck.check)
    def half(n: int) -> int:
        return n // 2

    monkeypatch.setattr(typecheck, "ALWAYS", 3)
    for _ in range(3):
        assert half(4) == 2
    seen = 0
    for _ in range(2 * typecheck.OFTEN):
        try:
            half(4.0)
        except TypeCheckError:
            seen += 1
    assert seen == 2
