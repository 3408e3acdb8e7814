"""Neurons of recorded steps: groups of every network, draws that are permuted along, and why a parameter is in none."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_topo._tape import StepRecorder, Tape, accepted, replay
from lightning_topo.neurons import FoundNeurons, groups_from_tapes, verify_on_tapes
from lightning_topo.neurons import _registry as registry
from lightning_topo.neurons._assembly import assemble
from lightning_topo.neurons._fewer_samples import with_fewer_samples
from lightning_topo.neurons._sample_axes import GUESSES
from lightning_topo.neurons._tape_coupling import couple
from lightning_topo.neurons._verify import without_carried
from tests.tape.steps import TRAININGS, Attention, batch, labels, mlp

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


def test_an_unused_parameter_and_an_output_say_why_they_are_in_no_group() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.idle = mlp(5, 8, 3), nn.Linear(4, 4)

    net, recorder, x, y = Idle(), StepRecorder(), batch(0, 6, 5), labels(0, 6)
    recorder.begin(net)
    recorder.loss(F.cross_entropy(net.net(x), y))
    found = groups_from_tapes(recorder.end())
    reasons = {entry.param: entry.reason for entry in found.uncovered}
    assert reasons.keys() == {"idle.weight", "idle.bias", "net.2.bias"}
    assert reasons["idle.weight"] == "the loss of the step does not depend on it"
    assert "classes" in reasons["net.2.bias"]
    assert found.uncovered[0].param == "idle.weight"


def test_a_refused_tape_says_why_for_every_parameter() -> None:
    net, recorder, x = mlp(5, 8, 3), StepRecorder(max_calls=3), batch(0, 6, 5)
    recorder.begin(net)
    recorder.loss(net(x).sum())
    found = groups_from_tapes(recorder.end())
    assert found.groups == ()
    assert "more than 3 operators" in found.refused[0]


def test_an_error_in_a_rule_freezes_its_tensors_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(trace, call) -> None:
        raise LookupError("a mistake")

    monkeypatch.setattr(registry, "_RULES", {**registry._RULES, "aten::cumsum": broken})
    net, recorder, x = mlp(5, 8, 7, 3), StepRecorder(), batch(0, 6, 5)
    recorder.begin(net)
    hidden = net[1](net[0](x)).cumsum(0)
    recorder.loss(net[2:](hidden).square().mean())
    groups = groups_from_tapes(recorder.end()).groups
    assert [(group.name, group.status) for group in groups] == [("0", "incoming_only"), ("2", "verified")]
    assert "LookupError: a mistake" in groups[0].reason


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


def test_attention_and_dropout_run_on_fewer_samples() -> None:
    torch.manual_seed(0)
    net, recorder, x = Attention(0.1), StepRecorder(), labels(0, 16 * 7, 11).view(16, 7)
    recorder.begin(net)
    recorder.loss(F.cross_entropy(net(x).flatten(0, 1), x.flatten()), n_samples=16)
    [tape] = recorder.end()
    coupling = couple([tape])
    cut = with_fewer_samples(tape, coupling.trace, coupling.tensors[0])
    assert cut.n_samples == 2
    assert {len(value) for value in cut.draws.values()} == {2}
    assert bool(torch.isfinite(replay(cut, {})[0]))


def test_a_mean_over_fewer_samples_is_the_mean_over_these() -> None:
    net, recorder, x, y = mlp(5, 8, 3), StepRecorder(), batch(0, 64, 5), labels(0, 64)
    recorder.begin(net)
    recorder.loss(F.cross_entropy(net(x), y))
    [tape] = recorder.end()
    coupling = couple([tape])
    cut = with_fewer_samples(tape, coupling.trace, coupling.tensors[0])
    assert cut.n_samples == 4
    assert torch.allclose(replay(cut, {})[0], F.cross_entropy(net(x[:4]), y[:4]))


def test_no_random_state_and_no_parameter_is_touched() -> None:
    module, tapes = tapes_of("variational")
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = torch.get_rng_state()
    groups_from_tapes(tapes, module=module)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("student", ["m", "z"])
def test_a_group_bears_the_name_of_what_is_trained_not_of_its_average(student: str) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    average = torch.optim.swa_utils.AveragedModel(layer, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    average.update_parameters(layer)  # the first one copies
    net, x, recorder = nn.ModuleDict({student: layer, "n": average}), batch(0, 4, 3, 8), StepRecorder()
    recorder.begin(net)
    average.update_parameters(layer)
    with torch.no_grad():
        target = average(x)
    recorder.loss((layer(x) - target).square().mean())
    groups = groups_from_tapes(recorder.end()).groups
    assert {group.name for group in groups} == {
        f"{student}.self_attn.heads",
        f"{student}.self_attn.query_key",
        f"{student}.self_attn.value",
        f"{student}.linear1",
    }
    assert {group.status for group in groups} == {"verified"}


class Masked(nn.Module):
    """Encodes a random part of each sample's tokens, as a masked autoencoder does, and fills in a learned one."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out, self.missing = nn.Linear(5, 8), nn.Linear(8, 5), nn.Parameter(torch.randn(1, 1, 5))

    def forward(self, x: Tensor) -> Tensor:
        n, times, width = x.shape
        kept = torch.rand(n, times).argsort(dim=1)[:, : times // 2]
        seen = x.gather(1, kept.unsqueeze(-1).repeat(1, 1, width))
        return torch.cat([self.out(self.hidden(seen).relu()), self.missing.repeat(n, times - kept.shape[1], 1)], dim=1)


class AsManyPositions(nn.Module):
    """Has as many positions, and as many states, as there are samples."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(5, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        decay = -torch.arange(1, x.shape[1] + 1, dtype=x.dtype).log()
        state = torch.zeros(len(x), x.shape[1], 5)
        for _ in range(2):
            state = state * decay[None, :, None].exp() + self.out(self.hidden(x).relu())
        mask = (torch.arange(x.shape[1])[:, None] >= torch.arange(x.shape[1])).expand(len(x), -1, -1)
        return state.transpose(1, 2) @ mask.to(x.dtype)


@pytest.mark.parametrize("kind", [Masked, AsManyPositions])
def test_what_is_as_long_as_the_samples_is_told_from_them(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    net, recorder, x = kind(), StepRecorder(), batch(0, 16, 16, 5)
    recorder.begin(net)
    recorder.loss(net(x).square().mean())
    [tape] = recorder.end()
    coupling = couple([tape])
    cut = with_fewer_samples(tape, coupling.trace, coupling.tensors[0], GUESSES[0])
    assert cut.n_samples == 2
    assert bool(torch.isfinite(replay(cut, {})[0]))
    assert [group.status for group in groups_from_tapes([tape]).groups] == ["verified"]
