"""A call on lists of tensors, taken apart: the single calls compute what torch's own does on the lists."""

import pytest
import torch
from torch import Tensor

from lightning_topo._tape.foreach import single_calls
from lightning_topo._tape.program import Call, Slot

OURS = torch.ops.aten


def apart(operator, lists: int, *others, in_place: bool, **options) -> tuple[list[Tensor], list[Tensor], int]:
    """Results of the call on `lists` lists of two tensors, and of the single calls; how many these are."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.rand(size, generator=generator) + 0.5 for _ in range(lists) for size in ((3,), (2, 2))]
    given, slots = [[t.clone() for t in tensors] for _ in range(2)], [Slot(i) for i in range(len(tensors))]

    def pairs(values):
        return [list(values[2 * i : 2 * i + 2]) for i in range(lists)]

    out = (None,) if in_place else (100, 101)
    wanted = operator(*pairs(given[0]), *others, **options)
    call = Call(operator, (*map(tuple, pairs(slots)), *others), options, out, (0, 1) if in_place else ())
    singles = single_calls(call)
    values = dict(enumerate(given[1]))
    for one in singles:
        args = [values[arg.index] if isinstance(arg, Slot) else arg for arg in one.args]
        kwargs = {key: values[arg.index] if isinstance(arg, Slot) else arg for key, arg in one.kwargs.items()}
        result = one.operator(*args, **kwargs)
        assert one.outputs[0] is not None
        values[one.outputs[0]] = result
    if in_place:
        assert [one.writes for one in singles] == [(0,), (1,)]
        return given[0][:2], [values[0], values[1]], len(singles)
    return list(wanted), [values[100], values[101]], len(singles)


@pytest.mark.parametrize(
    ("operator", "lists", "others", "options"),
    [
        (OURS._foreach_add_.List, 2, (), {"alpha": 0.1}),
        (OURS._foreach_mul_.Scalar, 1, (0.9,), {}),
        (OURS._foreach_mul_.ScalarList, 1, ([0.9, 2.0],), {}),
        (OURS._foreach_addcmul_.Scalar, 3, (0.5,), {}),
        (OURS._foreach_addcdiv_.ScalarList, 3, ([0.5, 2.0],), {}),
        (OURS._foreach_norm.Scalar, 1, (1,), {}),
        (OURS._foreach_max.default, 1, (), {}),
        (OURS._foreach_lerp_.Scalar, 2, (0.3,), {}),
        (OURS._foreach_sqrt_.default, 1, (), {}),
        (OURS._foreach_sqrt.default, 1, (), {}),
        (OURS._foreach_sub.List, 2, (), {"alpha": 2}),
        (OURS._foreach_pow.List, 2, (), {}),
    ],
    ids=str,
)
def test_the_single_calls_compute_the_same(operator, lists: int, others: tuple, options: dict) -> None:
    in_place = operator._schema.name.endswith("_")
    wanted, found, n = apart(operator, lists, *others, in_place=in_place, **options)
    assert n == 2
    for one, other in zip(wanted, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-6, atol=0)


def test_any_other_call_stays_as_it_is() -> None:
    plain = Call(OURS.add.Tensor, (Slot(0), Slot(1)), {}, (2,))
    assert single_calls(plain) == (plain,)


def test_what_no_single_operator_takes_stays_on_lists() -> None:
    """`addcdiv_` takes a number, and none that is in a tensor."""
    call = Call(OURS._foreach_addcdiv_.Tensor, (*[(Slot(i), Slot(i + 1)) for i in (0, 2, 4)], Slot(6)), {}, ())
    assert single_calls(call) == (call,)
