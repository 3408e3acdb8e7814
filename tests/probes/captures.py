"""Captures made by hand: a cloud is one tensor, and no trainer is needed."""

from contextlib import nullcontext

import torch
from torch import nn

from lightning_topo.neurons import NeuronGroup, ParamSlice
from lightning_topo.probes import Capture, Clouds


def one_group(name="g", n=5, blocks=()):
    dims = tuple(range(len(blocks) + 1))
    return NeuronGroup(name, "unit", n, blocks, (ParamSlice("w", dims=dims),))


def by_hand(after, before=None, reference=None, groups=None, previous=None, **options):
    groups = groups or [one_group(n=len(after))]

    def clouds(tensor):
        return Clouds(groups, {"w": tensor})

    return Capture(
        step=1,
        epoch=0,
        module=options.get("module", nn.Identity()),
        groups=groups,
        neurons=clouds(after),
        before=None if before is None else clouds(before),
        reference=clouds(after if reference is None else reference),
        optimizers=options.get("optimizers", []),
        training_loss=options.get("training_loss", nullcontext),
        previous=previous,
        last=None if "last" not in options else clouds(options["last"]),
    )


def cloud(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


N_GROUPS = 8


def groups_of(n, d, n_blocks=1):
    dims = (0,) if n_blocks == 1 else (0, 1)
    shape = (n, d) if n_blocks == 1 else (n_blocks, n, d)
    groups = [NeuronGroup(f"g{k}", "unit", n, shape[:-2], (ParamSlice(f"w{k}", dims=dims),)) for k in range(N_GROUPS)]
    generator = torch.Generator().manual_seed(0)
    return groups, [{f"w{k}": torch.randn(shape, generator=generator) for k in range(N_GROUPS)} for _ in range(4)]
