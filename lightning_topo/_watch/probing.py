"""Run the probes, and combine the results of several processes."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from lightning_topo._clock import Clock
from lightning_topo._watch.awaited import Awaited, AwaitedResults
from lightning_topo._watch.outcome import Failure, FailureKind, Outcome, joined, plain_values, portable, united
from lightning_topo._watch.ranks import ElsewhereError, Ranks
from lightning_topo._watch.schedule import Schedule, Unit
from lightning_topo.probes import Capture, Pending, Probe, ProbeResult, ProbeUnavailable, ResultLost

GO_ON = "Everything else goes on."


def is_divided(probe: Probe) -> bool:
    """Whether the probe looks at each group by itself, so that processes can share the work."""
    return getattr(probe, "by_group", False)


def measures_steps(probe: Probe) -> bool:
    """Whether the probe measures a step, and not a state."""
    return getattr(probe, "measures_steps", False)


def needs_gradient_scales(probe: Probe) -> bool:
    """Whether the probe asks how gradients are clipped on their way to the optimizers."""
    return getattr(probe, "needs_gradient_scales", False)


def needs_reference(probe: Probe) -> bool:
    """Whether the probe compares with the clouds of the beginning; a user's probe does unless it says otherwise."""
    return getattr(probe, "needs_reference", True)


class Probing:
    """The probes of one training, as long as they can measure it, and the last result of each.

    `errors` holds the last error that each probe raised, by name.
    """

    def __init__(self, probes: Sequence[Probe], ranks: Ranks, order: dict[str, int]) -> None:
        self.probes: list[Probe] = list(probes)
        self.errors: dict[str, Exception] = {}
        self.awaited: AwaitedResults = AwaitedResults()
        self._by_name = {probe.name: probe for probe in probes}
        self._ranks = ranks
        self.order: dict[str, int] = order
        self._previous: dict[str, ProbeResult] = {}
        self._again: dict[str, bool] = {}

    def named(self, name: str) -> Probe:
        """The probe of that name."""
        return self._by_name[name]

    def run(self, probe: Probe, capture: Callable[[ProbeResult | None], Capture], step: int, epoch: int) -> Outcome:
        """Run one probe on this process; a failure is part of the outcome.

        What it promises for later is kept, and taken in by `collect`.
        """
        clock, outcome = Clock(), Outcome(probe.name, step, epoch)
        previous = self._previous.get(probe.name)
        made = self._attempt(outcome, lambda: probe.measure(capture(previous)))
        if isinstance(made, Pending):
            self.awaited.add(Awaited(probe, step, epoch, made, clock.seconds()))
            return replace(outcome, seconds=clock.seconds(), lag=made.lag)
        return replace(made, seconds=clock.seconds())

    def collect(self, step: int | None = None, most_seconds: float | None = None) -> list[Outcome]:
        """This process's results that are due after this step (None: all)."""
        found = []
        for awaited in self.awaited.due(step):
            clock = Clock()
            previous = self._previous.get(awaited.probe.name)
            outcome = Outcome(awaited.probe.name, awaited.step, awaited.epoch)
            made = self._attempt(outcome, lambda a=awaited, p=previous: a.pending.collect(p, most_seconds))
            assert isinstance(made, Outcome)
            found.append(replace(made, seconds=awaited.seconds + clock.seconds()))
        return found

    def give_up(self, reason: str) -> list[Outcome]:
        """Report all awaited results as lost, if processes can no longer combine them."""
        failure = Failure(reason, kind=FailureKind.LOST)
        return [Outcome(a.probe.name, a.step, a.epoch, failure=failure) for a in self.awaited.due()]

    def carried(self, probe: Probe) -> Any:
        """The value that the probe's last measurement carries over to the next."""
        previous = self._previous.get(probe.name)
        return None if previous is None else previous.carry

    def saved(self) -> dict[str, Any]:
        """What probes with `save_carry` go on from after a resume, by name, in plain numbers and containers."""
        found = {}
        for probe in self.probes:
            save, carried = getattr(probe, "save_carry", None), self.carried(probe)
            if save is not None and carried is not None:
                found[probe.name] = save(carried)
        return found

    def load(self, saved: Mapping[str, Any]) -> None:
        """Take over what `saved` returned in an earlier run; what is damaged, or of another version, is left out."""
        for probe in self.probes:
            load = getattr(probe, "load_carry", None)
            if load is not None and probe.name in saved:
                with suppress(AttributeError, KeyError, TypeError, ValueError, IndexError, RuntimeError, OverflowError):
                    self._previous[probe.name] = ProbeResult(carry=load(saved[probe.name]))

    def release(self) -> None:
        """Let go of what measurements carry over, but for what `saved` returns: where that fails, of all."""
        saved: dict[str, Any] = {}
        with suppress(Exception):
            saved = self.saved()
        self._previous.clear()
        with suppress(Exception):
            self.load(saved)

    def is_wanted_again(self, probe: Probe) -> bool:
        """Whether the probe asked for another measurement after the next step."""
        return self._again.get(probe.name, False)

    def due(self, schedule: Schedule, unit: Unit, count: int) -> list[Probe]:
        """The probes whose time it is, or that have asked for this step."""
        return [
            probe
            for probe in self.probes
            if schedule.is_due(probe.name, unit, count) or (unit == "step" and self.is_wanted_again(probe))
        ]

    def wants_own_step(self, probe: Probe) -> bool:
        """Whether the probe asked for the step that it measures next to be recorded."""
        previous = self._previous.get(probe.name)
        return previous is not None and previous.wants_own_step

    def unite(self, every: Sequence[Sequence[Outcome]]) -> list[Outcome]:
        """The outcomes of all processes, by rank, as one for each probe and step, in the order of their steps."""
        found: dict[tuple[int, str], list[Outcome]] = {}
        for outcomes in every:
            mine: dict[tuple[int, str], Outcome] = {}
            for outcome in outcomes:
                key = (outcome.step, outcome.probe)
                mine[key] = joined(mine[key], outcome) if key in mine and outcome.lag is None else outcome
            for key, outcome in mine.items():
                found.setdefault(key, []).append(outcome)
        return [
            self._concluded(self._by_name[name], united(outcomes, is_divided(self._by_name[name]), self.order))
            for (_, name), outcomes in sorted(found.items(), key=lambda item: item[0][0])
        ]

    def _concluded(self, probe: Probe, outcome: Outcome) -> Outcome:
        """Note what an outcome of all processes means for the probe's next measurements."""
        failure = outcome.failure
        self._again[probe.name] = failure is None and outcome.again_after_step
        if failure is None:
            return outcome
        if failure.kind is FailureKind.UNAVAILABLE:
            if probe in self.probes:
                self.probes.remove(probe)
        elif failure.kind is FailureKind.FAILED and probe.name not in self.errors:
            self.errors[probe.name] = ElsewhereError(f"{probe.name} failed {failure.message}")
        return outcome

    def _attempt(self, outcome: Outcome, measure: Callable[[], Any]) -> Outcome | Pending:
        """Run the probe; return its result or its failure."""
        self.errors.pop(outcome.probe, None)
        try:
            made = measure()
            if isinstance(made, Pending):
                return made
            result = ProbeResult.of(made)
            values, refused = plain_values(result.values)
        except ProbeUnavailable as error:
            return replace(outcome, failure=Failure(str(error), error.remedy, FailureKind.UNAVAILABLE))
        except ResultLost as error:
            return replace(outcome, failure=Failure(str(error), kind=FailureKind.LOST))
        except Exception as error:
            self.errors[outcome.probe] = error
            return replace(outcome, failure=Failure(str(error) or type(error).__name__, GO_ON))
        self._previous[outcome.probe] = result
        found = replace(
            outcome,
            values=values,
            problems={str(group): str(why) for group, why in result.failures.items()},
            notes=tuple(map(str, result.notes)),
            refused=refused,
            diagrams=result.diagrams,
            again_after_step=bool(result.again_after_step),
        )
        return portable(found) if self._ranks.size > 1 else found
