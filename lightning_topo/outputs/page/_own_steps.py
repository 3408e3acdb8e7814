"""Optimizers that choose the length of their steps by themselves: no learning rate follows from what was measured."""

import math
from collections.abc import Mapping
from typing import Any

from lightning_topo.outputs.page._evidence import Evidence
from lightning_topo.outputs.page._next_rate import Advice
from lightning_topo.outputs.page._outcome import Outcome

_SMALLER = {
    "LBFGS": "lower max_iter (a step is up to that many iterations, each as long as the line search says)",
    "Rprop": "lower the larger of its step_sizes",
}


def own_steps(training: Mapping[str, Any]) -> str:
    """Which of a run's optimizers chooses the length of its steps; empty where all follow the learning rate.

    >>> own_steps({"optimizer": "LBFGS", "optimizer_options": "line_search_fn=strong_wolfe"})
    'LBFGS'
    >>> own_steps({"optimizer": "LBFGS", "optimizer_options": ""}), own_steps({"optimizer": "Adam, Rprop"})
    ('', 'Rprop')
    """
    searches = "line_search_fn" in str(training.get("optimizer_options", ""))
    names = (name.strip() for name in str(training.get("optimizer", "")).split(","))
    return next((name for name in names if name == "Rprop" or (name == "LBFGS" and searches)), "")


def advise_own_steps(outcome: Outcome, evidence: Evidence, optimizer: str) -> Advice:
    """What to do about steps whose length is the optimizer's own."""
    first, last = evidence.loss.first, evidence.loss.last
    has_failed = outcome.diverged_step is not None or evidence.loss.lost is not None
    reasons = [f"{optimizer} chooses how long its steps are: the learning rate does not."]
    if evidence.ratios:
        at = max(evidence.ratios, key=lambda s: evidence.ratios[s])
        reasons.append(f"The largest r was {evidence.ratios[at]:.3g}, at step {at:,}.")
    if first is not None and last is not None and math.isfinite(last):
        reasons.append(f"The loss was {first:.3g} at first, and {last:.3g} in the last steps.")
    if has_failed or outcome.breakdowns:
        return Advice(f"Let {optimizer} take smaller steps: {_SMALLER[optimizer]}.", tuple(reasons))
    met = "no limit was met" if outcome.measured or evidence.ratios else "no limit was measured"
    return Advice(f"Keep {optimizer} as it is: {met}.", tuple(reasons))
