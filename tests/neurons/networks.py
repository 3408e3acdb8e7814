"""A small network with batch norm and dropout, and its loss."""

import torch
import torch.nn.functional as F
from torch import nn


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(8, 6),
        nn.Tanh(),
        nn.Linear(6, 3),
    )


X, Y = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2, 0])


def loss(model: nn.Module) -> torch.Tensor:
    return F.cross_entropy(model(X), Y)
