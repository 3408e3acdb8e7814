"""Trainings of many kinds are bitwise what they are without the monitor; their neurons are proved, or refused."""

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import swa_utils
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_topo import Distortion, Persistence, Sharpness, TopologyMonitor
from tests.callbacks.training import Classifier, fit, happened
from tests.callbacks.untouched import NEEDS_A_GPU, Noted, differences, left_behind
from tests.tape.steps import CountedCalls, mlp


def loader(*shape, n=24):
    x = torch.randn(n, *shape, generator=torch.Generator().manual_seed(5))
    y = torch.randint(0, 3, (n,), generator=torch.Generator().manual_seed(6))
    return DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)


class ConvNorm(Noted):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
        )

    def step(self, batch):
        return F.cross_entropy(self.net(batch[0]), batch[1])


class Dropout(Noted):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))

    def step(self, batch):
        return F.cross_entropy(self.net(batch[0]), batch[1])


class Denoiser(Noted):
    """Draws from a generator of its own: torch's, or NumPy's."""

    def __init__(self, arrays):
        super().__init__()
        self.net = mlp(5, 8, 5)
        self.generator = np.random.default_rng(3) if arrays else torch.Generator().manual_seed(3)

    def step(self, batch):
        x = batch[0]
        if isinstance(self.generator, torch.Generator):
            noise = torch.randn(x.shape, generator=self.generator).to(x)
        else:
            noise = torch.from_numpy(self.generator.standard_normal(x.shape).astype(np.float32)).to(x)
        return (self.net(x + noise) - x).square().mean()


class Teacher(Noted):
    """BYOL: the teacher follows by a moving average within the step."""

    def __init__(self):
        super().__init__()
        self.student = mlp(5, 8, 4)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.count = 0

    def step(self, batch):
        with torch.no_grad():
            for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                slow.lerp_(fast, 0.1)
            target = self.teacher(batch[0] + 0.1 * torch.randn_like(batch[0]))
        self.count += 1
        return (self.student(batch[0]) - target).square().mean()


class ListedTeacher(Teacher):
    """lightly's: all of the teacher at once, by calls on lists."""

    def step(self, batch):
        with torch.no_grad():
            slow, fast = list(self.teacher.parameters()), [p.data for p in self.student.parameters()]
            torch._foreach_mul_(slow, 0.9)
            torch._foreach_add_(slow, fast, alpha=0.1)
            target = self.teacher(batch[0])
        return (self.student(batch[0]) - target).square().mean()


class Averaged(Teacher):
    """torch's own average, within the step."""

    def __init__(self):
        super().__init__()
        self.teacher = swa_utils.AveragedModel(self.student, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9))
        self.teacher.requires_grad_(False)

    def step(self, batch):
        self.teacher.update_parameters(self.student)
        with torch.no_grad():
            target = self.teacher(batch[0])
        return (self.student(batch[0]) - target).square().mean() + self.student(batch[0]).square().mean()


class Centre(Noted):
    """DINO: a centre that follows the teacher's outputs."""

    def __init__(self):
        super().__init__()
        self.student = mlp(5, 8, 4)
        self.teacher = mlp(5, 8, 4).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(4))

    def step(self, batch):
        with torch.no_grad():
            target = self.teacher(batch[0])
            sharp = ((target - self.centre) / 0.1).softmax(1)
            self.centre.mul_(0.9).add_(target.mean(0), alpha=0.1)
        return -(sharp * self.student(batch[0]).log_softmax(1)).sum(1).mean()


class Queue(Noted):
    """MoCo: keys of earlier batches."""

    def __init__(self):
        super().__init__()
        self.net = mlp(5, 8, 4)
        self.register_buffer("queue", F.normalize(torch.randn(16, 4), dim=1))
        self.at = 0

    def step(self, batch):
        query, key = (F.normalize(self.net(batch[0] + 0.1 * torch.randn_like(batch[0])), dim=1) for _ in range(2))
        logits = torch.cat([(query * key.detach()).sum(1, keepdim=True), query @ self.queue.clone().T], 1) / 0.2
        self.queue[self.at : self.at + 8] = key.detach()
        self.at = (self.at + 8) % 16
        return F.cross_entropy(logits, query.new_zeros(len(query), dtype=torch.long))


class Adversaries(Noted):
    """A GAN: the critic steps first, and the generator's loss is that of the critic as it is then."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.critic = mlp(4, 8, 5), nn.Sequential(nn.Linear(5, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))

    def step(self, batch):
        of_generator, of_critic = self.optimizers()
        fake = self.generator(torch.randn(len(batch[0]), 4, device=self.device))
        loss = F.softplus(-self.critic(batch[0])).mean() + F.softplus(self.critic(fake.detach())).mean()
        of_critic.zero_grad()
        self.manual_backward(loss)
        of_critic.step()
        self.log("critic", loss)
        loss = F.softplus(-self.critic(fake)).mean()
        of_generator.zero_grad()
        self.manual_backward(loss)
        of_generator.step()
        self.log("generator", loss)

    def configure_optimizers(self):
        return [torch.optim.Adam(part.parameters(), lr=1e-2) for part in (self.generator, self.critic)]


class Values(Noted):
    """DQN: the target network is made as training starts, and copied by hand."""

    def __init__(self):
        super().__init__()
        self.online = mlp(5, 8, 3)
        self.steps = 0

    def on_train_start(self):
        self.target = copy.deepcopy(self.online)

    def step(self, batch):
        if self.steps % 2 == 0:
            for slow, fast in zip(self.target.parameters(), self.online.parameters(), strict=True):
                slow.data.copy_(fast.data)
        self.steps += 1
        values = self.online(batch[0]).gather(1, batch[1][:, None]).squeeze(1)
        with torch.no_grad():
            wanted = 0.9 * self.target(batch[0]).max(1).values
        return F.smooth_l1_loss(values, wanted + batch[1])


class Variational(Noted):
    def __init__(self):
        super().__init__()
        self.encoder, self.code, self.decoder = nn.Linear(5, 8), nn.Linear(8, 6), mlp(3, 8, 5)

    def step(self, batch):
        mean, spread = self.code(self.encoder(batch[0]).relu()).chunk(2, dim=1)
        made = self.decoder(mean + (0.5 * spread).exp() * torch.randn_like(mean))
        return (made - batch[0]).square().mean() - 0.5 * (1 + spread - mean.square() - spread.exp()).mean()


class Diffusion(Noted):
    def __init__(self):
        super().__init__()
        self.net, self.time = mlp(5, 8, 5), nn.Embedding(10, 5)

    def step(self, batch):
        t = torch.randint(0, 10, (len(batch[0]),), device=self.device)
        noise, share = torch.randn_like(batch[0]), (t / 10.0)[:, None]
        return (self.net(batch[0] * (1 - share) + noise * share + self.time(t)) - noise).square().mean()


class Masked(Noted):
    """MAE: a random part of the tokens is seen, the rest is to be guessed."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = mlp(5, 8, 4), mlp(4, 8, 5)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 4))

    def step(self, batch):
        order = torch.rand(batch[0].shape[:2], device=self.device).argsort(1)
        seen = batch[0].gather(1, order[:, :3, None].expand(-1, -1, 5))
        code = torch.cat([self.encoder(seen), self.mask_token.expand(len(seen), 3, 4)], dim=1)
        made = self.decoder(code.gather(1, order.argsort(1)[:, :, None].expand(-1, -1, 4)))
        return (made - batch[0]).square().mean()


class DropPath(Noted):
    def __init__(self):
        super().__init__()
        self.first, self.branch, self.last = nn.Linear(5, 6), mlp(6, 8, 6), nn.Linear(6, 3)

    def step(self, batch):
        hidden = self.first(batch[0])
        kept = hidden.new_empty((len(hidden), 1)).bernoulli_(0.8).div_(0.8)
        return F.cross_entropy(self.last(hidden + kept * self.branch(hidden)), batch[1])


class Physics(Noted):
    def __init__(self):
        super().__init__()
        self.net = mlp(5, 8, 6, 1)

    def step(self, batch):
        x = batch[0].requires_grad_()
        value = self.net(x)
        slope = torch.autograd.grad(value.sum(), x, create_graph=True)[0]
        bend = torch.autograd.grad(slope[:, 0].sum(), x, create_graph=True)[0]
        return (slope[:, 1] - bend[:, 0]).square().mean() + value.square().mean()


class Penalty(Noted):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Softplus(), nn.Linear(8, 1))

    def step(self, batch):
        x = batch[0].requires_grad_()
        score = self.net(x)
        slope = torch.autograd.grad(score.sum(), x, create_graph=True)[0]
        return score.mean() + (slope.norm(dim=1) - 1).square().mean()


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        return grad


class Quantised(Noted):
    """A straight-through estimator: of plain operators, or a function with a gradient of its own."""

    def __init__(self, of_operators):
        super().__init__()
        self.first, self.last, self.of_operators = mlp(5, 8, 6), mlp(6, 7, 3), of_operators

    def step(self, batch):
        code = 2 * self.first(batch[0])
        code = code + (code.round() - code).detach() if self.of_operators else Rounded.apply(code)
        return F.cross_entropy(self.last(code), batch[1])


class Checkpointed(Noted):
    def __init__(self, reentrant):
        super().__init__()
        self.first, self.last, self.reentrant = nn.Linear(5, 8), nn.Linear(8, 3), reentrant
        self.middle = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, 8))

    def step(self, batch):
        hidden = self.first(batch[0]).tanh()
        return F.cross_entropy(
            self.last(hidden + checkpoint(self.middle, hidden, use_reentrant=self.reentrant)), batch[1]
        )


class Lazy(Noted):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.LazyLinear(3))

    def step(self, batch):
        return F.cross_entropy(self.net(batch[0]), batch[1])


class Recurrent(Noted):
    def __init__(self):
        super().__init__()
        self.net, self.last = nn.GRU(2, 6, batch_first=True), nn.Linear(6, 3)

    def step(self, batch):
        return F.cross_entropy(self.last(self.net(batch[0])[0][:, -1]), batch[1])


class Tied(Noted):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 5)
        self.last.weight = nn.Parameter(self.first.weight.detach().T.clone())
        self.again = nn.Linear(5, 8)
        self.again.weight = self.first.weight

    def step(self, batch):
        return (self.last(self.again(batch[0]).tanh() + self.first(batch[0]).tanh()) - batch[0]).square().mean()


class Hooked(Noted):
    """Hooks on its parameters average gradients over the steps, as Grokfast does, and count."""

    def __init__(self):
        super().__init__()
        self.net, self.means, self.calls = mlp(5, 8, 3), {}, []
        for name, parameter in self.net.named_parameters():
            parameter.register_hook(lambda g, name=name: self.averaged(name, g))
        torch.autograd.graph.register_multi_grad_hook(list(self.net.parameters()), lambda g: self.calls.append("all"))

    def averaged(self, name, gradient):
        self.calls.append(name)
        self.means[name] = 0.9 * self.means.get(name, torch.zeros_like(gradient)) + 0.1 * gradient.detach()
        return gradient + 2.0 * self.means[name]

    def step(self, batch):
        return F.cross_entropy(self.net(batch[0]), batch[1])


class Talkative(Noted):
    """Logs what a look at weights and activations may be."""

    def __init__(self):
        super().__init__()
        self.net = mlp(5, 8, 6, 3)

    def step(self, batch):
        hidden = self.net[:2](batch[0])
        self.log("quantile", hidden.abs().flatten().quantile(0.9).detach())
        self.log("top", hidden.topk(2, dim=1).values.mean().detach())
        self.log("bins", torch.histc(self.net[0].weight.detach(), bins=4)[0])
        self.log("row", self.net[0].weight[2].norm().detach())
        self.log("order", self.net[2].weight.abs().sum(1).argsort()[0].float())
        return F.cross_entropy(self.net[2:](hidden), batch[1])


class Reader(Noted):
    """Reads its neurons into Python and numpy, and computes with what it has read."""

    def __init__(self):
        super().__init__()
        self.net = mlp(5, 8, 3)

    def step(self, batch):
        hidden = self.net[:2](batch[0])
        [count] = (hidden[:, 0] > 0).sum(0, keepdim=True).tolist()
        scale = torch.from_numpy(np.abs(hidden.detach().numpy()).max(1, keepdims=True))
        first, second = (self.net[2:](hidden) / (1 + scale)).split([count, len(scale) - count])
        loss = F.cross_entropy(torch.cat([first, 2 * second]), batch[1])
        return loss * 2 if (hidden > 0.5).any() else loss


class Drawn(Dataset):
    """Draws its samples from random numbers of its own."""

    def __init__(self):
        self.rng = np.random.default_rng(4)

    def __len__(self):
        return 24

    def __getitem__(self, i):
        return torch.from_numpy(self.rng.standard_normal(5).astype(np.float32)), i % 3


KINDS = {
    "batch norm": (ConvNorm, lambda: loader(1, 6, 6), {"net.0"}),
    "dropout": (Dropout, lambda: loader(5), {"net.0"}),
    "generator": (lambda: Denoiser(arrays=False), lambda: loader(5), {"net.0"}),
    "numpy generator": (lambda: Denoiser(arrays=True), lambda: loader(5), {"net.0"}),
    "teacher": (Teacher, lambda: loader(5), {"student.0"}),
    "teacher by lists": (ListedTeacher, lambda: loader(5), {"student.0"}),
    "average": (Averaged, lambda: loader(5), {"student.0"}),  # and in it the average's, in the same group
    "centre": (Centre, lambda: loader(5), {"student.0", "teacher.0"}),
    "queue": (Queue, lambda: loader(5), {"net.0"}),
    "adversaries": (Adversaries, lambda: loader(5), {"generator.0", "critic.0"}),
    "values": (Values, lambda: loader(5), {"online.0"}),
    "variational": (Variational, lambda: loader(5), {"encoder", "decoder.0"}),
    "diffusion": (Diffusion, lambda: loader(5), {"net.0"}),
    "masked": (Masked, lambda: loader(6, 5), {"encoder.0", "decoder.0"}),
    "drop path": (DropPath, lambda: loader(5), {"branch.0"}),
    "physics": (Physics, lambda: loader(5), {"net.0", "net.2"}),
    "penalty": (Penalty, lambda: loader(5), {"net.0"}),
    "straight through": (lambda: Quantised(of_operators=True), lambda: loader(5), {"first.0", "last.0"}),
    "own gradient": (lambda: Quantised(of_operators=False), lambda: loader(5), {"last.0"}),
    "checkpointing": (lambda: Checkpointed(reentrant=False), lambda: loader(5), {"middle.0"}),
    "checkpointing again": (lambda: Checkpointed(reentrant=True), lambda: loader(5), {"middle.0"}),
    "lazy": (Lazy, lambda: loader(5), {"net.0"}),
    "recurrent": (Recurrent, lambda: loader(12, 2), {"net"}),
    "drawn data": (Dropout, lambda: DataLoader(Drawn(), batch_size=8), {"net.0"}),
    "tied": (Tied, lambda: loader(5), {"first"}),
    "hooks": (Hooked, lambda: loader(5), {"net.0"}),
    "reading": (Reader, lambda: loader(5), {"net.0"}),
    "logging": (Talkative, lambda: loader(5), {"net.0", "net.2"}),
}


@pytest.mark.parametrize("accelerator", ["cpu", pytest.param("gpu", marks=NEEDS_A_GPU)])
@pytest.mark.parametrize(("make", "data", "proved"), KINDS.values(), ids=KINDS)
def test_the_training_is_what_it_was_and_its_neurons_are_proved_or_refused(tmp_path, make, data, proved, accelerator):
    probes = [Distortion(every_n_steps=1), Persistence(every_n_steps=2, max_dim=0), Sharpness(every_n_steps=2)]
    monitor = TopologyMonitor(probes, report=False, verbose=False, max_overhead=None, on_error="raise")
    _, plain = left_behind(make, [], data, tmp_path, accelerator=accelerator)
    _, watched = left_behind(make, [monitor], data, tmp_path, accelerator=accelerator)
    assert differences(plain, watched) == []
    assert {group.name for group in monitor.groups if group.status == "verified"} >= proved
    assert all(group.reason for group in monitor.groups if group.status != "verified")
    table = monitor.record.parameters
    assert [p.param for p in table.parameters if not (p.groups or p.reason)] == []
    names = {event.name.value for event in happened(monitor.events)}
    # A gap where hooks make another gradient than that of a multiple of the loss: its samples grow old.
    assert names <= {"probe_failed", "betti_changed", "topology_breakdown", "outside_change", "gap"}, monitor.events
    if "probe_failed" in names:
        assert all(event.message and event.remedy for event in monitor.events)


def test_what_a_step_reads_into_python_is_in_the_reason_of_its_neurons(tmp_path):
    monitor = TopologyMonitor(report=False, verbose=False, on_error="raise")
    left_behind(Reader, [monitor], lambda: loader(5), tmp_path)
    [group] = [group for group in monitor.groups if group.name == "net.0"]
    wanted = "values read by the host (aten::_local_scalar_dense, numpy, perhaps aten::sum) are taken as constants"
    assert (group.status, group.reason) == ("verified", wanted)


@pytest.mark.parametrize("inside", [False, True])
def test_a_mode_of_the_user_sees_none_of_our_work(tmp_path, inside):
    """Around the whole training, or entered in each step before its backward pass and left after it."""

    class Stepped(Classifier):
        automatic_optimization = not inside

        def training_step(self, batch, batch_idx):
            if not inside:
                return super().training_step(batch, batch_idx)
            loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            with self.counted:
                self.manual_backward(loss)
            self.optimizers().step()
            self.optimizers().zero_grad()
            return loss

    def products(callbacks, name):
        torch.manual_seed(0)
        module = Stepped()
        module.counted = CountedCalls()
        with nullcontext() if inside else module.counted:
            fit(module, callbacks, root=tmp_path / name, max_steps=12)
        assert _get_current_dispatch_mode_stack() == []
        return module.counted.calls["mm"] + module.counted.calls["addmm"]

    monitor = TopologyMonitor([Distortion(1), Persistence(4), Sharpness(5)], verbose=False)
    assert products([monitor], "with") == products([], "without") > 0
    assert [group.status for group in monitor.groups] == ["verified", "verified"]
    assert not any(event.name == "probe_failed" for event in monitor.events)
