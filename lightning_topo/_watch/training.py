"""The interface between the engine and a training loop: all that the engine asks of one."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from lightning_topo._watch.ranks import Ranks


@runtime_checkable
class Training(Protocol):
    """One training of one module, whichever loop runs it.

    `log_every_n_steps` is how often a row goes to the loggers, 0 for never.
    """

    module: nn.Module
    ranks: Ranks
    log_every_n_steps: int

    @property
    def root(self) -> nn.Module:
        """The module from which whole parameters can be had: the module itself, or FSDP1's outermost wrapper."""
        ...

    @property
    def optimizers(self) -> Sequence[Any]:
        """The optimizers that the loop was given."""
        ...

    @property
    def step(self) -> int:
        """How many batches have led to an update, before the present one."""
        ...

    @property
    def epoch(self) -> int:
        """The present epoch, from 0."""
        ...

    @property
    def planned_steps(self) -> int | None:
        """How many batches will lead to an update in all; None where nobody knows."""
        ...

    def ends_epoch(self) -> bool:
        """At the end of a batch: whether it was the epoch's last."""
        ...

    @property
    def epochs_agree(self) -> bool:
        """Whether all processes end their epochs at the same step."""
        ...

    def precision(self) -> AbstractContextManager[Any]:
        """The context in which the loop computes losses."""
        ...

    def publish(self, values: Mapping[str, Tensor]) -> None:
        """Offer values to whoever watches the training from inside."""
        ...

    def facts(self) -> Mapping[str, Any]:
        """Facts about the training for readers of the record, as plain values."""
        ...
