"""The learning rates that a training really used, step by step."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

_OPTIONS = (
    *("momentum", "dampening", "nesterov", "betas", "eps", "alpha", "weight_decay", "amsgrad", "maximize"),
    "line_search_fn",
)


class Rates:
    """Keeps the learning rate of every step until it is reported; `reported` is the last that `take` returned."""

    def __init__(self) -> None:
        self._kept: dict[int, float] = {}
        self.reported: float | None = None

    def note(self, step: int, rate: float | None) -> None:
        """Keep the rate of one step; of several updates in it the first counts."""
        if rate is not None:
            self._kept.setdefault(step, rate)

    def take(self) -> tuple[dict[int, float], dict[int, float]]:
        """The rates by step since they were last taken, and those of them that differ from the step before.

        >>> rates = Rates()
        >>> for step, rate in enumerate([0.1, 0.1, 0.05], start=1):
        ...     rates.note(step, rate)
        >>> rates.take()
        ({1: 0.1, 2: 0.1, 3: 0.05}, {1: 0.1, 3: 0.05})
        """
        kept, self._kept = self._kept, {}
        changes: dict[int, float] = {}
        for step, rate in kept.items():
            if rate != self.reported:
                changes[step] = self.reported = rate
        return kept, changes


def learning_rate(optimizer: Any) -> float | None:
    """The rate of an optimizer's first parameter group; None where it has none, or where reading it would wait.

    >>> learning_rate(type("Rule", (), {"param_groups": [{"lr": 0.1}, {"lr": 0.01}]}))
    0.1
    """
    groups = getattr(optimizer, "param_groups", None)
    rate = groups[0].get("lr") if groups else None
    if isinstance(rate, Tensor):
        return float(rate) if rate.device.type == "cpu" and rate.numel() == 1 else None
    return float(rate) if isinstance(rate, int | float) else None


def optimizer_facts(optimizers: Iterable[Any]) -> Mapping[str, Any]:
    """The optimizers' names, rates and options, for readers of the record."""
    every = list(optimizers)
    first = [optimizer.param_groups[0] for optimizer in every if optimizer.param_groups]
    rates = [float(group["lr"]) for group in first if group.get("lr") is not None]
    everywhere = {float(group["lr"]) for o in every for group in o.param_groups if group.get("lr") is not None}
    options = [f"{name}={group[name]}" for group in first for name in _OPTIONS if group.get(name)]
    return {
        "optimizer": ", ".join(type(optimizer).__name__ for optimizer in every),
        "learning_rate": ", ".join(f"{rate:.6g}" for rate in rates),
        "n_learning_rates": len(everywhere),
        "optimizer_options": ", ".join(dict.fromkeys(options)),
    }
