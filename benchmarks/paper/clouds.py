"""Shapes to start neurons on: a figure eight, a surface of genus two, a sphere."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def figure_eight(n: int, radius: float = 0.7) -> Float[Tensor, "n 2"]:
    """n points on two circles that touch in the origin, none in the origin itself: two loops, one piece."""
    per_circle = n // 2
    angle = (torch.arange(per_circle) + 0.5) / per_circle * 2.0 * math.pi
    right = torch.stack([radius - radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)
    return torch.cat([right, -right])


def genus_two(n: int, tube: float = 0.45, seed: int = 0) -> Float[Tensor, "n 3"]:
    """n points spread evenly over two tori grown together (a smooth union of their distance functions): four loops."""
    generator = torch.Generator().manual_seed(seed)
    box = torch.tensor([2.8, 1.6, 0.6], dtype=torch.float64)
    points = (2.0 * torch.rand(60_000, 3, generator=generator, dtype=torch.float64) - 1.0) * box

    def height(p: Tensor) -> Tensor:
        x, y, z = p.unbind(1)
        tori = [torch.hypot(torch.hypot(x + side * 1.2, y) - 1.0, z) - tube for side in (-1.0, 1.0)]
        blend = (0.25 - (tori[0] - tori[1]).abs()).clamp_min(0.0)
        return torch.minimum(*tori) - blend.square()

    points = points[height(points).abs() < 0.1]
    for _ in range(20):  # Newton's method, along the gradient
        p = points.clone().requires_grad_()
        h = height(p)
        (slope,) = torch.autograd.grad(h.sum(), p)
        points = points - (h.detach() / slope.square().sum(1))[:, None] * slope
    points = points[height(points).abs() < 1e-9].float()
    return points[_spread_out(points, n)]


def sphere(n: int, d: int, radius: float, seed: int = 0) -> Float[Tensor, "n d"]:
    """n points spread evenly over a two-dimensional sphere, in a random three-dimensional subspace of R^d."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(20 * n, 3, generator=generator)
    points = points / points.norm(dim=1, keepdim=True)
    frame, _ = torch.linalg.qr(torch.randn(d, 3, generator=generator))
    return radius * points[_spread_out(points, n)] @ frame.T


def _spread_out(points: Float[Tensor, "m d"], n: int) -> Tensor:
    """The indices of n points, each as far from the earlier ones as can be."""
    chosen = [0]
    distance = (points - points[0]).norm(dim=1)
    while len(chosen) < n:
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (points - points[chosen[-1]]).norm(dim=1))
    return torch.tensor(chosen)
