"""The dense Hessian in float64, and the sharpness with what optimizers make of it."""

import torch

from lightning_topo.stability import (
    LanczosSettings,
    curvature_sharpness,
    hessian,
    parameter_thresholds,
    scaled_sharpness,
)


def dense_hessian(loss_fn, params):
    """H in float64, a row per entry, by differentiating each entry of the gradient."""
    params = list(params)
    grads = torch.autograd.grad(loss_fn(), params, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in grads])
    rows = [torch.cat([r.reshape(-1) for r in torch.autograd.grad(entry, params, retain_graph=True)]) for entry in flat]
    return torch.stack(rows)


def stability(loss_fn, params, optimizers, **settings):
    """The sharpness, and what the optimizers make of it, from one gradient graph."""
    curvature, settings = hessian(loss_fn, params), LanczosSettings(**settings)
    raw = curvature_sharpness(curvature, settings=settings)
    thresholds = parameter_thresholds(optimizers, curvature.params).parameters
    return raw, scaled_sharpness(curvature, thresholds, raw, settings=settings)
