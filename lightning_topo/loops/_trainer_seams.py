"""Reach into `transformers.Trainer` where its callbacks do not: backward, train, log."""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from torch import Tensor

from lightning_topo.loops._session import LoopSession


def wrap_backward(trainer: Any, session: LoopSession) -> Callable[[], None]:
    """Let the session see every loss and the end of its backward pass; returns what undoes it."""
    accelerator = trainer.accelerator
    backward = accelerator.backward

    @wraps(backward)
    def watched(loss: Tensor, **kwargs: Any) -> None:
        session.loss(loss, 1.0 / trainer.current_gradient_accumulation_steps)
        backward(loss, **kwargs)
        session.after_backward(goes_on=False)

    def undo() -> None:
        if accelerator.__dict__.get("backward") is watched:
            del accelerator.__dict__["backward"]

    accelerator.backward = watched
    return undo


def closing(train: Callable[..., Any], close: Callable[[], None]) -> Callable[..., Any]:
    """`train`, after which `close` is called, whatever happens."""

    @wraps(train)
    def closed(*args: Any, **kwargs: Any) -> Any:
        try:
            return train(*args, **kwargs)
        finally:
            close()

    return closed


class TrainerLog:
    """A logger whose rows go to whatever the trainer reports to.

    By `transformers.Trainer.log`, not an override: TRL's hands out the metrics that it has gathered, and clears them.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log, and leave it to the trainer whether it logs its own values at this step."""
        from transformers import Trainer

        control = self._trainer.control
        should_log = control.should_log
        Trainer.log(self._trainer, dict(metrics))
        control.should_log = should_log
