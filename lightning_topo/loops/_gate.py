"""Stopping a loop on what happens to the topology."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_topo._watch import Watch
from lightning_topo.outputs._feed import Findings
from lightning_topo.outputs._gates import ELSEWHERE, StopRules, StopState, advance, reason_to_stop, why_never
from lightning_topo.probes import Probe


@dataclass(slots=True)
class LoopGate:
    """Decides whether training should stop: `reason` is then a sentence, else None; alike on all processes."""

    rules: StopRules
    reason: str | None = field(default=None, init=False)
    counted: StopState = field(default_factory=StopState, init=False)

    @classmethod
    def of(cls, stop_on: str | Iterable[str] | StopRules | None, probes: Iterable[Probe]) -> "LoopGate | None":
        """A gate on events by their names, or by rules; None where there is nothing to stop on.

        Raises ValueError where none of the probes can see what a rule waits for.
        """
        if stop_on is None:
            return None
        rules = stop_on if isinstance(stop_on, StopRules) else StopRules.of(stop_on)
        if reason := why_never(rules, {probe.name for probe in probes}):
            raise ValueError(reason)
        return cls(rules)

    def take(self, findings: Findings | None, watch: Watch) -> None:
        """Count the findings, and decide; a collective where something was measured."""
        if findings is None or self.reason is not None:
            return
        self.counted = advance(self.counted, findings, self.rules)
        # Measurements come to all processes alike; an event of the record itself comes to the first alone.
        if watch.training.ranks.size > 1 and not findings.measurements:
            return
        mine = reason_to_stop(self.counted, self.rules)
        if any(watch.training.ranks.all("gate", mine is not None)):
            self.reason = mine or ELSEWHERE
            watch.stopped(self.counted.values())

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint; a gate that stopped counts from zero after a resume."""
        counted = self.counted if self.reason is None else StopState(step=self.counted.step)
        return counted.to_dict()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the counts of a checkpoint; raise as `StopState.from_dict` if they are damaged."""
        self.counted = StopState.from_dict(state)
