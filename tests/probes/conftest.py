"""The regression that most probes of curvature are tested on."""

import pytest
import torch
from torch import nn


@pytest.fixture
def setting():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    batch = torch.randn(40, 4, dtype=torch.float64), torch.randn(40, 2, dtype=torch.float64)
    return module, batch
