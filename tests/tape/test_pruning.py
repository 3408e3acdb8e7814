"""What a loss descends from: no call too few and none too many, and parameters that the step itself has made."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_topo._tape import Call, Slot, StepRecorder, tape_loss
from lightning_topo._tape.pruning import passed_by_gradient, pruned, with_transparent_functions
from tests.tape.recording import recorded
from tests.tape.steps import batch, labels

ATEN = torch.ops.aten


def test_layers_that_are_lazy_until_the_step() -> None:
    torch.manual_seed(0)
    net, x, y = nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.LazyLinear(3)), batch(0, 6, 5), labels(0, 6)

    def loss() -> Tensor:
        value = F.cross_entropy(net(x), y)
        assert all(p.detach().norm() > 0 for p in net.parameters())  # what else is read of them is not the parameter
        return value

    tape = recorded(net, loss)
    assert (tape.obstacle, tape.gradient_obstacle) == ("", "")
    assert sorted(tape.params) == ["0.bias", "0.weight", "2.bias", "2.weight"]
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1.5)
    assert torch.allclose(tape_loss(tape, dict(net.named_parameters())), F.cross_entropy(net(x), y))


def test_parameters_that_are_made_in_the_step() -> None:
    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(5, 8)

        def forward(self, x: Tensor) -> Tensor:
            if not hasattr(self, "second"):
                self.second = nn.Linear(8, 3)
            return self.second(torch.tanh(self.first(x)))

    net, x, y = Growing(), batch(0, 6, 5), labels(0, 6)
    tape = recorded(net, lambda: F.cross_entropy(net(x), y))
    assert (tape.obstacle, tape.gradient_obstacle) == ("", "")
    assert "second.weight" in tape.params


def run(calls: Sequence[Call], given: dict[int, Tensor], output: int) -> Tensor | None:
    """The output of a program that is run as it stands; None where something it reads is missing."""
    values = {slot: tensor.clone() for slot, tensor in given.items()}
    for call in calls:
        if not set(call.inputs) <= values.keys():
            return None
        result = call.operator(*[values[arg.index] if isinstance(arg, Slot) else arg for arg in call.args])
        for slot in call.outputs:
            assert slot is not None
            values[slot] = result
    return values.get(output)


def call(operator, *args, to: int, writes: tuple[int, ...] = ()) -> Call:
    return Call(operator, args, {}, (to,), writes)


# Slots 0 to 2 are given; 3 is a view of 0, and 5 one of 4.
PROGRAM = (
    call(ATEN.select.int, Slot(0), 0, 1, to=3),
    call(ATEN.mul.Tensor, Slot(0), Slot(1), to=4),
    call(ATEN.norm.Scalar, Slot(3), 2, to=6),  # logged
    call(ATEN.select.int, Slot(4), 0, 0, to=5),
    call(ATEN.add_.Tensor, Slot(5), Slot(2), to=5, writes=(5,)),
    call(ATEN.sin.default, Slot(4), to=7),
    call(ATEN.mul_.Tensor, Slot(3), 2.0, to=3, writes=(3,)),  # into what 8 reads, not into what 7 has read
    call(ATEN.sum.default, Slot(7), to=9),
    call(ATEN.sum.default, Slot(0), to=8),
)
STORAGES = [0, 1, 2, 0, 4, 4, 6, 7, 8, 9]


def test_what_is_kept_gives_the_same_and_nothing_of_it_can_go() -> None:
    given = {0: torch.tensor([1.0, 2.0]), 1: torch.tensor([3.0, 5.0]), 2: torch.tensor(7.0)}
    for output, kept in ((9, 5), (8, 3), (6, 2)):
        whole, few = run(PROGRAM, given, output), pruned(PROGRAM, [output], STORAGES)
        assert whole is not None
        found = run(few, given, output)
        assert found is not None
        assert torch.equal(found, whole)
        assert len(few) == kept
        for left_out in range(len(few)):
            without = run([*few[:left_out], *few[left_out + 1 :]], given, output)
            assert without is None or not torch.equal(without, whole)
    assert pruned(PROGRAM, [1], STORAGES) == ()  # what is given needs no call


def test_a_gradient_goes_through_the_calls_inside_of_a_function_alone() -> None:
    def silent(source: int, to: int) -> Call:
        return Call(ATEN.sin.default, (Slot(source),), {}, (to,), (), False)

    # 1 is computed without a gradient from 0, which has one; 2 and 3 inside of a function that 1 does not belong to.
    calls = [silent(0, 1), silent(0, 2), silent(2, 3), Call(ATEN.sin.default, (Slot(3),), {}, (4,))]
    connected = [True, False, False, True, True]
    storages = [0, 1, 2, 3, 4]
    found = with_transparent_functions(calls, {3: "Mine"}, connected, storages)
    assert [c.grad for c in found] == [False, True, True, True]
    assert with_transparent_functions(calls, {}, connected, storages) == calls
    # 5 is a part of 3's memory, and filled from 1: what the function returns comes from there, too.
    filled = Call(ATEN.copy_.default, (Slot(5), Slot(1)), {}, (5,), (5,), False)
    calls.insert(3, filled)
    found = with_transparent_functions(
        calls, {3: "Mine"}, [*connected[:1], False, *connected[2:], False], [*storages, 3]
    )
    assert [c.grad for c in found] == [True] * 5


def test_a_gradient_goes_where_the_loss_has_one_and_not_through_what_is_detached() -> None:
    names = ("trained", "first", "target", "frozen", "beside")
    layers = nn.ModuleDict({name: nn.Linear(4, 4, bias=False) for name in names})
    layers["frozen"].requires_grad_(False)

    def step(x: Tensor) -> Tensor:
        follows = torch.relu_(layers["target"](torch.relu_(layers["first"](x)))).detach()
        with torch.no_grad():
            weights = layers["beside"](x)
        return (layers["frozen"](torch.relu_(layers["trained"](x))) - follows + weights).square().mean()

    x = torch.randn(3, 4)
    recorder = StepRecorder()
    recorder.begin(layers)
    loss = step(x)
    recorder.loss(loss)
    [tape] = recorder.end()
    passed = passed_by_gradient(tape.calls, tape.outputs, tape.storages)
    reached = {name for slot in passed for name in tape.names.get(slot, ())}
    assert reached == {"trained.weight", "frozen.weight"}
    loss.backward()
    assert {name for name, p in layers.named_parameters() if p.grad is not None} == reached - {"frozen.weight"}
