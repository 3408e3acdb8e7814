"""Whether an operator works entry by entry, told by trial; and what works so needs no rule."""

import pytest
import torch
import torch.nn.functional as F

from lightning_topo.neurons import find_neuron_groups
from lightning_topo.neurons._elementwise import is_elementwise
from tests.neurons.rules.models import Between, X, check_exchangeable

EXCHANGEABLE = {
    "pointwise": F.gelu,
    "prelu": lambda h: F.prelu(h.transpose(1, 2), torch.full((12,), 0.3)).transpose(1, 2) * 0 + F.elu(h),
    "hardswish": F.hardswish,
    "hardswish in place": lambda h: F.hardswish(h.clone(), inplace=True),
    "log-sigmoid": F.logsigmoid,
    "clamped by a reduction": lambda h: torch.minimum(h, h.amax(-1, keepdim=True) - 0.1),
    "vmap": torch.func.vmap(torch.tanh),
}


@pytest.mark.parametrize("between", EXCHANGEABLE.values(), ids=EXCHANGEABLE.keys())
def test_neurons_stay_exchangeable(between) -> None:
    check_exchangeable(between)


ORDERED = {
    "constant of its own per neuron": lambda h: h * torch.linspace(0, 1, 12),
}


@pytest.mark.parametrize("between", ORDERED.values(), ids=ORDERED.keys())
def test_an_order_along_the_neurons_leaves_no_group(between) -> None:
    assert [g for g in find_neuron_groups(Between(between), X) if g.status == "verified"] == []


@pytest.mark.parametrize(
    ("overload", "arguments", "expected"),
    [
        (torch.ops.aten.hardswish.default, {"self": torch.zeros(2, 7)}, True),
        (torch.ops.aten.hardswish_.default, {"self": torch.zeros(2, 7)}, True),
        (torch.ops.aten.hardswish_backward.default, {"grad_output": torch.zeros(9), "self": torch.zeros(9)}, True),
        (torch.ops.aten.log_sigmoid_forward.default, {"self": torch.zeros(3, 3)}, True),
        (torch.ops.aten.mul.Tensor, {"self": torch.zeros(2, 7), "other": torch.zeros(7)}, True),
        (torch.ops.aten.cumsum.default, {"self": torch.zeros(2, 7), "dim": 1}, False),
        (torch.ops.aten.flip.default, {"self": torch.zeros(2, 7), "dims": [1]}, False),
        (torch.ops.aten.tril.default, {"self": torch.zeros(7, 7)}, False),
        (torch.ops.aten.sort.default, {"self": torch.zeros(2, 7)}, False),
        (torch.ops.aten.softmax.int, {"self": torch.zeros(2, 7), "dim": 1}, False),
        (torch.ops.aten.renorm.default, {"self": torch.zeros(2, 7), "p": 2, "dim": 0, "maxnorm": 1.0}, False),
        (torch.ops.aten.bernoulli.default, {"self": torch.zeros(2, 7)}, False),
        (torch.ops.aten.channel_shuffle.default, {"self": torch.zeros(2, 12, 4, 4), "groups": 3}, False),
        (torch.ops.aten.native_channel_shuffle.default, {"self": torch.zeros(2, 12, 4, 4), "groups": 3}, False),
        (torch.ops.aten.roll.default, {"self": torch.zeros(2, 12), "shifts": [3], "dims": [1]}, False),
        (torch.ops.aten.mm.default, {"self": torch.zeros(7, 7), "mat2": torch.zeros(7, 7)}, False),
    ],
)  # fmt: skip
def test_operators_that_work_entry_by_entry_are_told_by_trial(overload, arguments, expected: bool) -> None:
    given = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}
    outputs = overload(**given)
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else [t for t in outputs if t.numel()]
    before = {name: value.clone() for name, value in given.items() if isinstance(value, torch.Tensor)}
    assert is_elementwise(overload, given, outputs) is expected
    assert all(torch.equal(given[name], value) for name, value in before.items())


def test_an_operator_of_ones_own_that_works_entry_by_entry_needs_no_rule() -> None:
    @torch.library.custom_op("topo_test::softened", mutates_args=())
    def softened(x: torch.Tensor) -> torch.Tensor:
        return x * torch.tanh(F.softplus(x))

    softened.register_autograd(
        lambda ctx, g: g * torch.sigmoid(ctx.saved_tensors[0]),
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
    )
    [group] = find_neuron_groups(Between(softened), X)
    assert (group.n, group.status) == (12, "verified")
