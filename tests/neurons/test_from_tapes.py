"""Neurons of recorded steps: groups of every network, draws that are permuted along, and why a parameter is in none."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_topo._tape import StepRecorder, Tape, accepted
from lightning_topo.neurons import (
    FoundNeurons,
    NeuronGroup,
    ParamSlice,
    _from_tapes,
    groups_from_tapes,
    verify_on_tapes,
)
from lightning_topo.neurons._assembly import assemble
from lightning_topo.neurons._tape_coupling import couple
from lightning_topo.neurons._verify import without_carried
from tests.tape.steps import TRAININGS, batch, labels, mlp

EXPECTED = {
    "classifier": {"0": 12, "4": 8},
    "convolutional": {"0": 6, "5": 4, "5.groups": 2},
    "transformer": {"layer.linear1": 24, **{f"layer.self_attn.{part}": 4 for part in ("heads", "query_key", "value")}},
    "recurrent": {f"rnn.weight_ih_l{k}{side}": 8 for k in (0, 1) for side in ("", "_reverse")},
    "mixed_precision": {"0": 12},
    "accumulating": {"0": 12},
    "gan": {"generator.0": 16, "critic.0": 10},
    "q_learning": {"online.0": 12},
    "teacher_by_average": {"online.0": 12},
    "teacher_by_data": {"online.0": 12},
    "physics": {"0": 16, "2": 12},
    "gradient_penalty": {"0": 12},
    "checkpointing": {"1.0.0": 16},
    "reentrant_checkpointing": {"1.0.0": 16},
    "variational": {"encoder": 16, "mean": 4, "decoder.0": 12},
    "drop_path": {"1.0": 16},
    "queue": {"net.0": 12},
    "queue_of_ones_own": {"0": 12},
    "written_data": {"0": 12},
    "logging_readouts": {"0": 12, "2": 8},
    "copied_memory": {"0": 12},
    "buffer_written_as_bytes": {},  # whose bytes are whose is not followed
    "rounded_by_its_bits": {"0": 12},
    "complex_and_sparse": {"net.0": 12},
    "functional_derivative": {"0": 12},
    "shared_weights": {"0": 12},
}
EXPECTED["transformer_with_dropout"] = EXPECTED["transformer"]


def tapes_of(name: str) -> tuple[nn.Module, list[Tape]]:
    torch.manual_seed(0)
    made, recorder = TRAININGS[name](), StepRecorder()
    recorder.begin(made.module)
    made.step(recorder, 0)
    tapes = recorder.end()
    gradients = {key: p.grad for key, p in made.module.named_parameters()}
    if name == "gan":
        parts = [{key: g for key, g in gradients.items() if key.startswith(part)} for part in ("generator", "critic")]
        return made.module, [accepted(tape, part) for tape, part in zip(tapes, parts, strict=True)]
    return made.module, [accepted(tape, None if name == "accumulating" else gradients) for tape in tapes]


def found_in(name: str) -> FoundNeurons:
    module, tapes = tapes_of(name)
    assert [tape.obstacle or tape.gradient_obstacle for tape in tapes] == [""] * len(tapes)
    return groups_from_tapes(tapes, module=module)


@pytest.mark.parametrize("name", TRAININGS)
def test_groups_of_every_kind_of_step_are_proved(name: str) -> None:
    found = found_in(name)
    groups = [group for group in found.groups if group.n > 1]
    assert {group.name: group.n for group in groups} == EXPECTED[name]
    assert {group.name: (group.status, group.reason) for group in groups if group.status != "verified"} == {}
    assert not any(param.startswith("@") for group in groups for param in group.params)


@pytest.mark.parametrize("name", TRAININGS)
def test_every_trained_parameter_has_groups_or_a_reason(name: str) -> None:
    module, tapes = tapes_of(name)
    coverage = groups_from_tapes(tapes, module=module).coverage
    assert {entry.param for entry in coverage} == {key for key, p in module.named_parameters() if p.requires_grad}
    assert all(bool(entry.groups) != bool(entry.reason) for entry in coverage)


def test_a_teacher_is_permuted_with_its_student() -> None:
    [group] = found_in("teacher_by_average").groups
    assert {piece.param: piece.trainable for piece in group.slices if piece.param.endswith("0.weight")} == {
        "online.0.weight": True,
        "target.0.weight": False,
    }


def test_a_mask_is_permuted_with_the_neurons_that_it_fell_on() -> None:
    """With the mask left where it is the very same group is refused."""
    _, [tape] = tapes_of("classifier")
    groups = assemble(couple([tape]).trace, tape.trainable)
    assert [group.status for group in verify_on_tapes([tape], groups)] == ["verified", "verified"]
    bare = [without_carried(group) for group in groups]
    assert bare[0] != groups[0]
    assert [group.status for group in verify_on_tapes([tape], bare)] == ["incoming_only", "verified"]


def test_of_a_program_two_tapes_are_looked_at_and_each_that_contradicts() -> None:
    net, tapes = mlp(5, 8, 3), []
    for seed in range(4):
        recorder = StepRecorder()
        recorder.begin(net)
        recorder.loss(F.cross_entropy(net(batch(seed, 6, 5)), labels(seed, 6)))
        tapes += recorder.end()
    tapes[3] = tapes[3].replaced(unlike=frozenset({"0.weight"}), gradient_obstacle="another")
    assert _from_tapes._without_repeats(tapes) == [tapes[0], tapes[1], tapes[3]]
    assert [group.status for group in groups_from_tapes(tapes).groups] == ["incoming_only"]


def test_one_group_that_fails_takes_no_other() -> None:
    """A straight-through function: what lies below it is not proved, what lies above is."""

    class Round(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return (4 * x).round() / 4

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    net, recorder, x = mlp(5, 8, 7, 3), StepRecorder(), batch(0, 6, 5)
    recorder.begin(net)
    loss = net[2:](Round.apply(net[:2](x))).square().mean()
    recorder.loss(loss)
    loss.backward()
    [tape] = recorder.end()
    groups = groups_from_tapes([accepted(tape, {name: p.grad for name, p in net.named_parameters()})]).groups
    assert [(group.name, group.status) for group in groups] == [("0", "incoming_only"), ("2", "verified")]
    assert "Round" in groups[0].reason


def test_a_number_that_the_host_reads_is_named_where_a_verdict_leans_on_it() -> None:
    net, recorder, x = mlp(5, 8, 3), StepRecorder(), batch(0, 6, 5)
    recorder.begin(net)
    out = net(x)
    recorder.loss((out / out.norm().item()).square().mean())
    [group] = groups_from_tapes(recorder.end()).groups
    assert group.status == "verified"
    assert "_local_scalar_dense" in group.reason


def test_losses_that_share_neurons_tie_them_together() -> None:
    """Actor and critic with one trunk: its units are read by both heads."""
    net = nn.ModuleDict({"trunk": nn.Linear(5, 8), "actor": nn.Linear(8, 3), "critic": nn.Linear(8, 1)})
    recorder, x, y = StepRecorder(), batch(0, 6, 5), labels(0, 6)
    recorder.begin(net)
    recorder.loss(F.cross_entropy(net["actor"](torch.tanh(net["trunk"](x))), y))
    recorder.resume()
    recorder.loss(net["critic"](torch.tanh(net["trunk"](x))).square().mean())
    recorder.resume()
    [group] = [group for group in groups_from_tapes(recorder.end()).groups if group.n > 1]
    assert (group.status, set(group.params)) == (
        "verified",
        {"trunk.weight", "trunk.bias", "actor.weight", "critic.weight"},
    )


def test_no_random_state_and_no_parameter_is_touched() -> None:
    module, tapes = tapes_of("variational")
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = torch.get_rng_state()
    groups_from_tapes(tapes, module=module)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


# --- what is drawn for single neurons ---------------------------------------------------------------------------------


class _Between(nn.Module):
    """Two layers, and what lies between them."""

    def __init__(self, between):
        super().__init__()
        self.a, self.b, self.between = nn.Linear(3, 5), nn.Linear(5, 2), between

    def forward(self, x):
        return self.b(self.between(torch.tanh(self.a(x))))


class _Recurrent(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell, self.out = cell(3, 6, 2, dropout=0.5), nn.Linear(6, 2)

    def forward(self, x):
        return self.out(self.cell(x)[0])


class _Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.start, self.attention = nn.Linear(3, 8), nn.MultiheadAttention(8, 2, dropout=0.5)

    def forward(self, x):
        x = self.start(x)
        return self.attention(x, x, x)[0]


@pytest.mark.parametrize(
    ("model", "drawn"),
    [
        (_Between(nn.Identity()), set()),
        (_Between(nn.Dropout(0.5)), {"a"}),
        (_Between(nn.Dropout(0.5).eval()), set()),
        (_Between(nn.Dropout(0.0)), set()),
        (_Between(nn.RReLU()), {"a"}),
        (_Between(lambda h: nn.functional.dropout(h, 0.5)), {"a"}),
        (_Between(lambda h: h + 0.5 * torch.randn(h.shape)), {"a"}),
        (_Between(lambda h: h * torch.bernoulli(torch.full(h.shape[1:], 0.5))), {"a"}),
        (_Between(lambda h: h * torch.rand(h.shape[0], 1)), set()),  # for each sample, as stochastic depth does
        (_Recurrent(nn.LSTM), {"cell.weight_ih_l0"}),
        (_Recurrent(nn.GRU), {"cell.weight_ih_l0"}),
        (_Attentive(), {"attention.heads"}),
    ],
)
def test_the_record_tells_of_which_groups_each_neuron_has_random_numbers_of_its_own(model, drawn):
    samples = torch.randn(16, 3) if isinstance(model, _Between) else torch.randn(7, 4, 3)
    recorder = StepRecorder()
    recorder.begin(model)
    recorder.loss(model(samples).square().mean())
    found = groups_from_tapes([accepted(tape) for tape in recorder.end()], module=model)
    assert found.drawn == drawn
    assert drawn <= {group.name for group in found.groups if group.status == "verified"}


def test_where_a_step_was_not_followed_anything_may_be_drawn():
    model = mlp(4, 12, 3)
    declared = [NeuronGroup("first", "unit", 12, (), (ParamSlice("0.weight"),))]
    tape = recorded(model)
    assert groups_from_tapes([tape], declared=declared).drawn == frozenset()
    assert groups_from_tapes([tape.replaced(obstacle="of no use")], declared=declared).drawn == {"first"}
    both = groups_from_tapes([tape, tape.replaced(obstacle="of no use")], module=model)
    assert both.drawn == {group.name for group in both.groups}


def recorded(model):
    recorder = StepRecorder()
    recorder.begin(model)
    recorder.loss(model(batch(0, 16, 4)).square().mean())
    [tape] = recorder.end()
    return accepted(tape)
