"""A training loop written by hand, as the engine sees a training."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DataParallel, DistributedDataParallel

from lightning_topo._watch.ranks import Ranks
from lightning_topo._watch.rates import optimizer_facts

_HOLD_A_MODULE = (DataParallel, DistributedDataParallel, FullyShardedDataParallel)


@dataclass(slots=True)
class LoopTraining:
    """Implements `lightning_topo._watch.training.Training` for a loop, which itself counts `step` and `epoch`.

    `values` are the values published last, by key.
    """

    module: nn.Module
    root: nn.Module
    ranks: Ranks
    optimizers: Sequence[Any]
    log_every_n_steps: int = 50
    planned_steps: int | None = None
    step: int = 0
    epoch: int = 0
    epochs_agree: bool = True  # every process calls `end_epoch` after the same step
    values: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls, model: nn.Module, optimizers: Any, log_every_n_steps: int = 50, planned_steps: int | None = None
    ) -> "LoopTraining":
        """Build it from a loop's model and its optimizer or optimizers, wrapped or not.

        Raises `ValueError` for a negative period or number of steps.
        """
        if log_every_n_steps < 0:
            raise ValueError(f"expected log_every_n_steps >= 0, got {log_every_n_steps}")
        if planned_steps is not None and planned_steps < 1:
            raise ValueError(f"expected planned_steps >= 1 or None, got {planned_steps}")
        every = list(optimizers) if isinstance(optimizers, Sequence) else [optimizers]
        bare = [bare_optimizer(optimizer) for optimizer in every]
        module, root = bare_module(model), _root(model)
        return cls(module, root, Ranks(_messages_device(module)), bare, log_every_n_steps, planned_steps)

    def ends_epoch(self) -> bool:
        """Return False: only the loop knows where an epoch ends, and reports it afterwards."""
        return False

    def precision(self) -> AbstractContextManager[Any]:
        """Do nothing: the loop enters its own contexts around its losses."""
        return nullcontext()

    def publish(self, values: Mapping[str, Tensor]) -> None:
        """Keep what was published last."""
        self.values = values

    def facts(self) -> Mapping[str, Any]:
        """Optimizers, learning rates, sizes and versions."""
        return {
            **optimizer_facts(self.optimizers),
            "parameters": sum(p.numel() for p in self.module.parameters() if not nn.parameter.is_lazy(p)),
            "planned_steps": self.planned_steps,
            "processes": self.ranks.size,
            "torch": torch.__version__,
        }


def bare_module(model: nn.Module) -> nn.Module:
    """The user's own module inside those of `torch.compile`, torch's parallel training, and Fabric.

    >>> net = nn.Linear(2, 2)
    >>> bare_module(torch.compile(DataParallel(net))) is net
    True
    """
    while (inner := _inside(model)) is not None:
        model = inner
    return model


def bare_optimizer(optimizer: Any) -> Any:
    """The optimizer inside the wrappers of Fabric and Accelerate.

    >>> sgd = torch.optim.SGD(nn.Linear(2, 2).parameters())
    >>> bare_optimizer(sgd) is sgd
    True
    """
    while _is_of(optimizer, "_FabricOptimizer", "AcceleratedOptimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def _inside(model: nn.Module) -> nn.Module | None:
    """The module that a wrapper holds."""
    if isinstance(model, _HOLD_A_MODULE) or _is_of(model, "_FabricModule"):
        inner = getattr(model, "module", None)
    else:
        inner = getattr(model, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else None


def _root(model: nn.Module) -> nn.Module:
    """FSDP1's outermost wrapper, or the user's own module."""
    sharded = [module for module in model.modules() if isinstance(module, FullyShardedDataParallel)]
    return sharded[0] if sharded else bare_module(model)


def _is_of(thing: Any, *names: str) -> bool:
    """By name, so that these libraries need not be installed."""
    return any(cls.__name__ in names for cls in type(thing).__mro__)


def _messages_device(module: nn.Module) -> torch.device:
    """The device of messages between processes: NCCL has no CPU tensors."""
    if distributed.is_available() and distributed.is_initialized() and distributed.get_backend() == "nccl":
        return next((p.device for p in module.parameters()), torch.device("cuda"))
    return torch.device("cpu")
