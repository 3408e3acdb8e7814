"""Everything that a training leaves behind, to be compared with and without somebody who watches."""

from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.callbacks.training import fit

NEEDS_A_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Noted(L.LightningModule):
    """Notes what it logs, and which batches it is given, in order."""

    lr = 1e-2

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[Any] = []

    def training_step(self, batch, batch_idx):
        self.noted.append(("batch", batch_idx, [part.clone() for part in batch]))
        return self.step(batch)

    def log(self, name, value, *args, **kwargs):
        self.noted.append((name, float(torch.as_tensor(value).detach())))
        super().log(name, value, *args, **kwargs)

    def configure_optimizers(self):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=self.lr)


def left_behind(make: Callable[[], Noted], callbacks: list[Any], data: Callable[[], Any], root: Any, **options: Any):
    """Train from a seed; returns the trainer, and parameters, buffers, all states, attributes, logs by their names."""
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - what user code draws from
    module = make()
    trainer = fit(module, callbacks, root=root, data=data(), **{"max_steps": 4} | options)
    return trainer, {
        "state": dict(module.state_dict()),
        "gradients": {name: p.grad for name, p in module.named_parameters()},
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        # Not Python's own generator: the tests' type checker draws from it.
        "random": (torch.get_rng_state(), _of_devices(), np.random.get_state()),  # noqa: NPY002
        "attributes": {
            k: v for k, v in vars(module).items() if not k.startswith("_") and k not in ("trainer", "noted")
        },
        "noted": module.noted,
        "global step": trainer.global_step,
    }


def _of_devices() -> list[Tensor]:
    return torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def same(a: Any, b: Any) -> bool:
    """Whether two things are bitwise the same, however deep."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, torch.Generator):
        return torch.equal(a.get_state(), b.get_state())
    if isinstance(a, np.random.Generator):
        return same(a.bit_generator.state, b.bit_generator.state)
    if isinstance(a, nn.Module):
        return same(dict(a.state_dict()), dict(b.state_dict()))
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return callable(a) or a == b


def differences(plain: Mapping[str, Any], watched: Mapping[str, Any]) -> list[str]:
    """What is not the same."""
    return [name for name, value in plain.items() if not same(value, watched[name])]
