"""A small regression in double precision: its loss, captures of it, and ways to make it fail."""

from contextlib import contextmanager

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from lightning_topo._tape import StepRecorder, TapeLoss, accepted
from lightning_topo.neurons import NeuronGroup, ParamSlice
from lightning_topo.probes import BatchLoss, Capture, Clouds

GROUP = NeuronGroup(
    "hidden", "unit", 6, (), (ParamSlice("0.weight"), ParamSlice("0.bias"), ParamSlice("2.weight", dims=(1,)))
)


def mse(module, batch):
    return nn.functional.mse_loss(module(batch[0]), batch[1])


def capture(setting, optimizer, previous=None, before=None):
    module, batch = setting

    @contextmanager
    def training_loss(loss_fn):
        yield BatchLoss(lambda b: (loss_fn or mse)(module, b), batch)

    clouds = Clouds([GROUP], dict(module.named_parameters()))
    return Capture(
        1, 0, module, [GROUP], clouds, None, clouds, [optimizer], training_loss, previous, parameters_before=before
    )


def recorded(setting, sizes):
    """The same loss as recorded steps of so many samples, in a capture."""
    module, (x, y) = setting
    tapes, recorder = [], StepRecorder()
    for part in zip(x.split(sizes), y.split(sizes), strict=True):
        recorder.begin(module)
        recorder.loss(mse(module, part))
        tapes += [accepted(tape) for tape in recorder.end()]
    loss = TapeLoss(module, tapes, precision=torch.float64)

    @contextmanager
    def training_loss(loss_fn):
        yield loss

    clouds = Clouds([GROUP], dict(module.named_parameters()))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    return Capture(1, 0, module, [GROUP], clouds, None, clouds, [optimizer], training_loss)


def trained(setting, optimizer, steps=1):
    module, batch = setting
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    for _ in range(steps):
        optimizer.zero_grad()
        mse(module, batch).backward()
        optimizer.step()
    return before


def small_memory(limit, error=torch.OutOfMemoryError):
    """The mean squared error, of at most so many samples at a time."""
    sizes = []

    def loss_fn(module, batch):
        sizes.append(len(batch[0]))
        if sizes[-1] > limit:
            raise error("DefaultCPUAllocator: can't allocate memory: you tried to allocate 3 bytes.")
        return mse(module, batch)

    return loss_fn, sizes


class TanhOnce(torch.autograd.Function):
    """tanh, with a backward pass that autograd cannot look into."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.tanh())
        return x.tanh()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return grad * (1 - ctx.saved_tensors[0] ** 2)
