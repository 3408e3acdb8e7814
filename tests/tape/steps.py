"""Training steps of the kinds that people write, each as a module and one step of its training."""

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torchmetrics import MeanMetric


class Watcher(Protocol):
    """What a loop tells of its step: a recorder, or nobody."""

    def loss(self, loss: Tensor, *, scale: float = 1.0) -> None: ...
    def resume(self) -> None: ...


class Nobody:
    def loss(self, loss: Tensor, *, scale: float = 1.0) -> None: ...
    def resume(self) -> None: ...


class CountedCalls(TorchDispatchMode):
    """Counts the operators that pass, as a user's own counter would."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func._schema.name.removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))


@dataclass
class Training:
    module: nn.Module
    step: Callable[[Watcher, int], None]
    optimizers: list[torch.optim.Optimizer]


TRAININGS: dict[str, Callable[[], Training]] = {}


def training(builder: Callable[[], Training]) -> Callable[[], Training]:
    TRAININGS[builder.__name__] = builder
    return builder


def batch(step: int, *shape: int) -> Tensor:
    """Data: from NumPy, as a loader's are made where nothing is recorded."""
    return torch.from_numpy(np.random.default_rng(100 + step).standard_normal(shape, dtype=np.float32))


def labels(step: int, n: int, classes: int = 3) -> Tensor:
    return torch.from_numpy(np.random.default_rng(200 + step).integers(classes, size=n))


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths):
        layers += [nn.Linear(width_in, width_out), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def of_loss(module: nn.Module, loss: Callable[[int], Tensor]) -> Training:
    """One loss, one optimizer."""
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], 1e-2)

    def step(watcher: Watcher, index: int) -> None:
        value = loss(index)
        watcher.loss(value)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    return Training(module, step, [optimizer])


@training
def classifier() -> Training:
    net = nn.Sequential(
        nn.Linear(5, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)
    )
    return of_loss(net, lambda i: F.cross_entropy(net(batch(i, 16, 5)), labels(i, 16)))


@training
def convolutional() -> Training:
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout2d(0.2),
        nn.Conv2d(6, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip
    return of_loss(net, lambda i: F.cross_entropy(net(batch(i, 4, 2, 12, 12)), labels(i, 4)))


class Attention(nn.Module):
    def __init__(self, dropout: float = 0.0, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.layer = nn.TransformerEncoderLayer(
            width, 4, width + width // 2, dropout, batch_first=True, norm_first=True
        )
        self.head = nn.Linear(width, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(tokens)))


def tokens(step: int) -> Tensor:
    return labels(step, 21, 11).view(3, 7)


@training
def transformer() -> Training:
    net = Attention()
    return of_loss(net, lambda i: F.cross_entropy(net(tokens(i)).flatten(0, 1), tokens(i).roll(1, 1).flatten()))


@training
def transformer_with_dropout() -> Training:
    net = Attention(0.1)
    return of_loss(net, lambda i: F.cross_entropy(net(tokens(i)).flatten(0, 1), tokens(i).roll(1, 1).flatten()))


class Recurrent(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.rnn = nn.LSTM(5, width, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0].mean(1))


@training
def recurrent() -> Training:
    net = Recurrent()
    return of_loss(net, lambda i: F.cross_entropy(net(batch(i, 4, 6, 5)), labels(i, 4)))


@training
def mixed_precision() -> Training:
    net = nn.Sequential(nn.Linear(5, 12), nn.LayerNorm(12), nn.GELU(), nn.Linear(12, 3))

    def loss(i: int) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return F.cross_entropy(net(batch(i, 16, 5)), labels(i, 16))

    return of_loss(net, loss)


@training
def accumulating() -> Training:
    net = mlp(5, 12, 3)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)

    def step(watcher: Watcher, index: int) -> None:
        for k in range(2):
            value = F.cross_entropy(net(batch(2 * index + k, 16, 5)), labels(2 * index + k, 16)) / 2
            watcher.loss(value, scale=0.5)
            value.backward()
            watcher.resume()
        optimizer.step()
        optimizer.zero_grad()

    return Training(net, step, [optimizer])


class Adversaries(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator, self.critic = (
            mlp(4, 16, 6),
            nn.Sequential(nn.Linear(6, 10), nn.LeakyReLU(0.2), nn.Linear(10, 1)),
        )


@training
def gan() -> Training:
    module = Adversaries()
    g = torch.optim.Adam(module.generator.parameters(), 1e-2)
    d = torch.optim.Adam(module.critic.parameters(), 1e-2)

    def step(watcher: Watcher, index: int) -> None:
        fake = module.generator(torch.randn(8, 4))
        loss = F.softplus(-module.critic(fake)).mean()
        watcher.loss(loss)
        g.zero_grad()
        loss.backward(retain_graph=True)
        g.step()
        watcher.resume()
        loss = F.softplus(-module.critic(batch(index, 8, 6))).mean() + F.softplus(module.critic(fake.detach())).mean()
        watcher.loss(loss)
        d.zero_grad()
        loss.backward()
        d.step()
        watcher.resume()

    return Training(module, step, [g, d])


class WithTarget(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.online = mlp(5, 12, 4)
        self.target = copy.deepcopy(self.online)


@training
def q_learning() -> Training:
    module = WithTarget()

    def loss(i: int) -> Tensor:
        if i % 2 == 0:
            module.target.load_state_dict(module.online.state_dict())
        values = module.online(batch(i, 16, 5)).gather(1, labels(i, 16, 4)[:, None]).squeeze(1)
        with torch.no_grad():
            wanted = 0.9 * module.target(batch(i + 50, 16, 5)).max(1).values
        return F.smooth_l1_loss(values, wanted)

    return of_loss(module, loss)


@training
def teacher_by_average() -> Training:
    module = WithTarget()
    module.target.requires_grad_(False)

    def loss(i: int) -> Tensor:
        with torch.no_grad():
            for student, teacher in zip(module.online.parameters(), module.target.parameters(), strict=True):
                teacher.mul_(0.9).add_(student, alpha=0.1)
        x = batch(i, 16, 5)
        return (module.online(x) - module.target(x + 0.1 * torch.randn_like(x))).square().mean()

    return of_loss(module, loss)


@training
def teacher_by_data() -> Training:
    module = WithTarget()
    module.target.requires_grad_(False)

    def loss(i: int) -> Tensor:
        for student, teacher in zip(module.online.parameters(), module.target.parameters(), strict=True):
            teacher.data = teacher.data * 0.9 + student.data * 0.1
        x = batch(i, 16, 5)
        return (module.online(x) - module.target(x)).square().mean() + module.online(x).square().mean()

    return of_loss(module, loss)


@training
def physics() -> Training:
    net = mlp(2, 16, 12, 1)

    def loss(i: int) -> Tensor:
        x = batch(i, 16, 2).requires_grad_()
        u = net(x)
        slope = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
        bend = torch.autograd.grad(slope[:, 0].sum(), x, create_graph=True)[0][:, 0]
        return (slope[:, 1] - bend).square().mean() + u.square().mean()

    return of_loss(net, loss)


@training
def gradient_penalty() -> Training:
    net = nn.Sequential(nn.Linear(6, 12), nn.LayerNorm(12), nn.Softplus(), nn.Linear(12, 1))

    def loss(i: int) -> Tensor:
        x = batch(i, 16, 6).requires_grad_()
        score = net(x)
        slope = torch.autograd.grad(score.sum(), x, create_graph=True)[0]
        return score.mean() + 10 * (slope.norm(dim=1) - 1).square().mean()

    return of_loss(net, loss)


def _checkpointed(reentrant: bool) -> Training:
    first, middle, last = nn.Linear(5, 12), mlp(12, 16, 12), nn.Linear(12, 3)
    net = nn.ModuleList([first, nn.Sequential(middle, nn.Dropout(0.2)), last])

    def loss(i: int) -> Tensor:
        hidden = torch.tanh(first(batch(i, 16, 5)))
        inner = checkpoint(net[1], hidden, use_reentrant=reentrant)
        return F.cross_entropy(last(hidden + inner), labels(i, 16))

    return of_loss(net, loss)


@training
def checkpointing() -> Training:
    return _checkpointed(False)


@training
def reentrant_checkpointing() -> Training:
    return _checkpointed(True)


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.mean, self.spread = nn.Linear(6, 16), nn.Linear(16, 4), nn.Linear(16, 4)
        self.decoder = mlp(4, 12, 6)


@training
def variational() -> Training:
    module = Autoencoder()

    def loss(i: int) -> Tensor:
        x = batch(i, 16, 6)
        hidden = torch.relu(module.encoder(x))
        mean, log_variance = module.mean(hidden), module.spread(hidden)
        code = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).mean()
        return (module.decoder(code) - x).square().mean() + divergence

    return of_loss(module, loss)


@training
def drop_path() -> Training:
    net = nn.ModuleList([nn.Linear(5, 12), mlp(12, 16, 12), nn.Linear(12, 3)])

    def loss(i: int) -> Tensor:
        hidden = net[0](batch(i, 16, 5))
        kept = hidden.new_empty((16, 1)).bernoulli_(0.8).div_(0.8)
        mask = torch.rand(16, 12) < 0.7
        return F.cross_entropy(net[2](hidden + kept * net[1](hidden) * mask), labels(i, 16))

    return of_loss(net, loss)


class Contrast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(5, 12, 6)
        self.register_buffer("queue", F.normalize(torch.randn(32, 6), dim=1))
        self.at = 0


@training
def queue() -> Training:
    module = Contrast()

    def loss(i: int) -> Tensor:
        query, key = (F.normalize(module.net(batch(i + k, 8, 5)), dim=1) for k in (0, 1))
        logits = torch.cat([(query * key.detach()).sum(1, keepdim=True), query @ module.queue.clone().T], 1) / 0.2
        with torch.no_grad():
            module.queue[module.at : module.at + 8] = key
        module.at = (module.at + 8) % 32
        return F.cross_entropy(logits, torch.zeros(8, dtype=torch.long))

    return of_loss(module, loss)


@training
def queue_of_ones_own() -> Training:
    """The queue is no buffer, and is read after it was written."""
    net, kept = mlp(5, 12, 6), torch.randn(32, 6)

    def loss(i: int) -> Tensor:
        out = net(batch(i, 8, 5))
        with torch.no_grad():
            kept[8 * (i % 4) : 8 * (i % 4) + 8] = out
        return (out @ kept.T).logsumexp(1).mean()

    return of_loss(net, loss)


@training
def written_data() -> Training:
    """Weights are clipped through `.data` before they are used."""
    net = mlp(5, 12, 3)

    def loss(i: int) -> Tensor:
        for p in net.parameters():
            p.data.clamp_(-0.2, 0.2)
        net[0].bias.data = net[0].bias.data * 0.5
        return F.cross_entropy(net(batch(i, 16, 5)), labels(i, 16))

    return of_loss(net, loss)


@training
def logging_readouts() -> Training:
    net = mlp(5, 12, 8, 3)
    logged: list[Tensor | float] = []

    def loss(i: int) -> Tensor:
        hidden = net[:2](batch(i, 16, 5))
        logged.extend([hidden.detach().topk(2, dim=1).values.mean(), torch.histc(net[0].weight.detach(), bins=8)])
        logged.extend([net[2].weight.detach().abs().sum(1).argsort(), hidden.abs().flatten().quantile(0.95)])
        logged.extend([net[0].weight[k].norm().item() for k in range(12)])
        logged.append(torch.linalg.svdvals(net[0].weight)[0].detach())
        value = F.cross_entropy(net[2:](hidden), labels(i, 16))
        logged.append(value.item())
        return value

    return of_loss(net, loss)


@training
def copied_memory() -> Training:
    """A metric made in the step reads what `deepcopy` has written as bytes; so does the loss, of a weight's copy."""
    net = mlp(5, 12, 3)
    logged: list[Tensor] = []

    def loss(i: int) -> Tensor:
        metric = MeanMetric()
        metric.reset()
        value = F.cross_entropy(net(batch(i, 16, 5)), labels(i, 16))
        metric.update(value)
        logged.append(metric.compute())
        anchor = copy.deepcopy(net[0].weight.detach())
        return value + 0.1 * (net[0].weight - 0.9 * anchor).square().sum()

    return of_loss(net, loss)


@training
def buffer_written_as_bytes() -> Training:
    """What is copied into a buffer's storage is read through the buffer."""
    net = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 3))
    net.register_buffer("centre", torch.zeros(12))

    def loss(i: int) -> Tensor:
        hidden = net[1](net[0](batch(i, 16, 5)))
        net.centre.untyped_storage().copy_(hidden.detach().mean(0).clone().untyped_storage())
        return F.cross_entropy(net[2](hidden - net.centre), labels(i, 16))

    return of_loss(net, loss)


@training
def rounded_by_its_bits() -> Training:
    """Activations lose their lower bits through a tensor of integers on their memory."""
    net = mlp(5, 12, 3)

    def loss(i: int) -> Tensor:
        out = net(batch(i, 16, 5))
        rounded = out.detach().clone()
        torch.empty(0, dtype=torch.int32).set_(rounded.untyped_storage()).bitwise_and_(-(1 << 16))
        return F.cross_entropy(out + (rounded - out.detach()), labels(i, 16))

    return of_loss(net, loss)


class Weird(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(5, 12, 3)
        self.phase = nn.Parameter(torch.randn(3, dtype=torch.complex64))
        self.register_buffer("graph", torch.eye(5).to_sparse())


@training
def complex_and_sparse() -> Training:
    module = Weird()

    def loss(i: int) -> Tensor:
        out = module.net(torch.sparse.mm(module.graph, batch(i, 16, 5).T).T)
        return F.cross_entropy((out * module.phase).abs(), labels(i, 16))

    return of_loss(module, loss)


@training
def functional_derivative() -> Training:
    net = mlp(2, 12, 1)

    def loss(i: int) -> Tensor:
        slopes = torch.func.vmap(torch.func.grad(lambda x: net(x[None])[0, 0]))(batch(i, 8, 2))
        return (slopes[:, 0] - slopes[:, 1]).square().mean() + net(batch(i, 8, 2)).square().mean()

    return of_loss(net, loss)


@training
def shared_weights() -> Training:
    net = nn.ModuleList([nn.Linear(5, 12), nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 3)])
    net[2].weight = net[1].weight

    def loss(i: int) -> Tensor:
        hidden = torch.tanh(net[1](torch.tanh(net[0](batch(i, 16, 5)))))
        return F.cross_entropy(net[3](torch.tanh(net[2](hidden))), labels(i, 16))

    return of_loss(net, loss)
