"""The loss of a recorded step in FSDP's shards, here those of one process; with two `tests/distributed` runs it."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from lightning_topo._tape import CannotReplay
from lightning_topo._watch.recording import Recording
from lightning_topo.probes import ProbeUnavailable
from tests.watch.driving import training_of
from tests.watch.shards import KINDS, Attends, in_flat_shards, in_shards, move, recorded, tokens

pytestmark = pytest.mark.usefixtures("one_process")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("losses", [1, 2])
def test_it_is_the_loss_at_the_present_parameters(losses, kind):
    net, alike = KINDS[kind](Attends()), Attends()
    loss, value = recorded(net, tokens(), losses)
    with loss(None) as evaluate:
        assert evaluate().item() == pytest.approx(value, rel=1e-6)
        move(net, 1.3)
        move(alike, 1.3)
        found = evaluate()
    assert found.item() == pytest.approx(alike(tokens()).item(), rel=1e-6)
    assert not found.requires_grad


def test_shards_and_gradients_are_as_they_were_and_nothing_stays_gathered():
    net = in_shards(Attends())
    loss, _ = recorded(net, tokens())
    before = {name: (id(p), p.to_local().clone(), p.grad.to_local().clone()) for name, p in net.named_parameters()}
    buffers = {name: b.clone() for name, b in net.named_buffers()}
    with loss(None) as evaluate:
        evaluate()
    for name, p in net.named_parameters():
        known, values, gradient = before[name]
        assert id(p) == known
        assert torch.equal(p.to_local(), values)
        assert torch.equal(p.grad.to_local(), gradient)
    assert all(torch.equal(b, buffers[name]) for name, b in net.named_buffers())


def test_no_copy_of_a_parameter_is_kept():
    net = in_shards(Attends())
    loss, _ = recorded(net, tokens())
    [tape] = loss._tapes
    assert {tape.names[slot] for slot in tape.values} <= {(name,) for name, _ in net.named_buffers()}
    sizes = {p.shape for p in net.parameters() if p.dim() > 1}
    assert not sizes & {constant.shape for constant in tape.constants.values()}


def test_one_process_alone_accepts_the_step_that_shows_its_neurons():
    """Its gradients are shards too, and not compared; rank 0 keeps the values that the proof needs."""
    net = in_shards(Attends())
    recording = Recording(training_of(net), None)
    recording.begin(tokens(), 1, wanted=True, for_neurons=True)
    loss = net(tokens())
    recording.loss(loss, 1.0)
    loss.backward()
    recording.differentiated(goes_on=False)
    [tape] = recording.end()
    assert tape.obstacle == ""
    assert {name for slot in tape.values for name in tape.names[slot]} >= {name for name, _ in net.named_parameters()}


def test_it_runs_in_the_precision_of_the_units():
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    net = Attends()
    net.norm = nn.LayerNorm(8)  # torch has no BatchNorm of these types on CPUs
    in_shards(net, mp_policy=policy)
    loss, value = recorded(net, tokens())
    with loss(None) as evaluate:
        assert evaluate().item() == value


def test_what_was_drawn_falls_as_it_did():
    net = in_shards(Attends())
    loss, value = recorded(net, tokens(), call=lambda x: F.dropout(net(x) * torch.ones(4)).mean())
    with loss(None) as evaluate:
        assert evaluate().item() == evaluate().item() == pytest.approx(value, rel=1e-6)


def test_a_module_that_calls_itself_gathers_nothing_by_that():
    """As a LightningModule does in its training step: what follows is part of the step."""

    class Itself(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Attends()

        def forward(self, x, deeper=True):
            return self(x, deeper=False).square() * self.net.norm.weight.sum() if deeper else self.net(x)

    net, alike = in_flat_shards(Itself(), use_orig_params=True), Itself()
    loss, value = recorded(net, tokens())
    with loss(None) as evaluate:
        assert evaluate().item() == pytest.approx(value, rel=1e-6)
        move(net, 1.3)
        move(alike, 1.3)
        assert evaluate().item() == pytest.approx(alike(tokens()).item(), rel=1e-6)


def test_it_is_refused_at_other_parameters_than_those_of_the_step():
    net = in_shards(Attends())
    loss, _ = recorded(net, tokens())
    move(net, 1.3)
    with loss(None) as evaluate, pytest.raises(CannotReplay, match="loss differs from the step's"):
        evaluate()


def score(net, x):
    """Reads parameters in a method of the unit, where no hook of a module runs."""
    return F.linear(net.embed.weight[x], net.head.weight).square().mean()


def test_a_parameter_that_is_read_without_its_module_is_no_constant():
    net, alike = in_shards(Attends()), Attends()
    net.score = partial(score, net)
    register_fsdp_forward_method(net, "score")
    loss, value = recorded(net, tokens(), call=net.score)
    with loss(None) as evaluate:
        assert evaluate().item() == pytest.approx(value, rel=1e-6)
        move(net, 1.3)
        move(alike, 1.3)
        assert evaluate().item() == pytest.approx(score(alike, tokens()).item(), rel=1e-6)


def test_a_parameter_that_is_none_of_the_modules_is_no_constant():
    """Nobody could give its value later: the loss is refused."""
    net, other = in_shards(Attends()), nn.Parameter(torch.ones(()))
    loss, _ = recorded(net, tokens(), call=lambda x: net(x) * other)
    with pytest.raises(CannotReplay, match="a parameter that is none of the module's"), loss(None):
        pass


def test_another_step_than_the_recorded_one_is_not_measured():
    net = in_shards(Attends())
    loss, _ = recorded(net, tokens())
    loss._training.step += 1
    with pytest.raises(CannotReplay, match="the step that is measured was not recorded"), loss(None):
        pass


def test_one_refused_step_is_no_reason_to_give_up_and_three_on_end_are():
    net = in_shards(Attends())
    loss, _ = recorded(net, tokens())
    move(net, 1.3)
    for error in (CannotReplay, CannotReplay, ProbeUnavailable):
        with pytest.raises(error, match="differs from the step's"), loss(None) as evaluate:
            evaluate()
    loss.refuse("a compiled module")
    with pytest.raises(ProbeUnavailable, match="a compiled module"), loss(None):
        pass


class Normed(nn.Module):
    """Its weight is computed by a hook of the user's, before the forward pass."""

    def __init__(self, norm):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(11, 8)
        self.block = norm(nn.Linear(8, 11))

    def forward(self, x):
        return F.cross_entropy(self.block(self.embed(x)).flatten(0, 1), x.flatten())


def doubling(layer):
    layer.register_forward_pre_hook(lambda module, args: (2.0 * args[0] * module.weight.view(-1)[0],))
    return layer


@pytest.mark.parametrize("norm", [nn.utils.spectral_norm, nn.utils.weight_norm, doubling])
@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_what_a_hook_of_the_users_computes_is_part_of_the_step(norm):
    net, alike = Normed(norm), Normed(norm)
    fully_shard(net.block)
    fully_shard(net)
    loss, value = recorded(net, tokens())
    alike(tokens())  # spectral_norm iterates once in each
    for hook in alike.block._forward_pre_hooks.values():
        if norm is nn.utils.spectral_norm:
            hook.n_power_iterations = 0
    with loss(None) as evaluate:
        assert evaluate().item() == pytest.approx(value, rel=1e-6)
        move(net, 1.3)
        move(alike, 1.3)
        assert evaluate().item() == pytest.approx(alike(tokens()).item(), rel=1e-4)
    hooks = [getattr(hook, "__module__", "") for hook in net.block._forward_pre_hooks.values()]
    assert not [name for name in hooks if name.startswith("lightning_topo")]


def test_shards_that_a_step_reads_are_no_constants():
    net = in_shards(Attends())
    loss, _ = recorded(net, tokens(), call=lambda x: net(x) + net.block[0].weight._local_tensor.square().sum())
    with pytest.raises(CannotReplay, match="reads shards of parameters themselves"), loss(None):
        pass


def test_units_that_are_whole_when_a_recording_begins_are_not_copied():
    net = in_shards(Attends(), reshard_after_forward=False)
    with torch.no_grad():
        net(tokens())
    loss, value = recorded(net, tokens())
    [tape] = loss._tapes
    assert {tape.names[slot] for slot in tape.values} <= {(name,) for name, _ in net.named_buffers()}
    for unit in (net, net.attention, net.block):
        unit.reshard()
    with loss(None) as evaluate:
        assert evaluate().item() == pytest.approx(value, rel=1e-6)


def test_steps_that_gather_other_units_have_another_order():
    net = in_shards(Attends())

    def order(**options):
        with recorded(net, tokens(), **options)[0](None) as evaluate:
            return evaluate.order

    once = lambda x: net.block(torch.ones(2, 8)).square().mean()  # noqa: E731
    assert order() == order() != order(call=once)
