"""Running the probes, and putting together what several processes have found."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lightning_topo.callbacks.awaited import Awaited, AwaitedResults
from lightning_topo.callbacks.capturing import Capturing, is_divided
from lightning_topo.callbacks.clock import Clock
from lightning_topo.callbacks.ranks import ElsewhereError, Ranks
from lightning_topo.homology import Bars, PersistenceDiagram
from lightning_topo.probes import Clouds, Pending, Probe, ProbeResult, ProbeUnavailable, ResultLost

GO_ON = (
    "Everything else goes on. If weights or loss are no longer finite, training has diverged: lower the learning rate."
)


@dataclass(frozen=True, slots=True)
class Found:
    """What one probe has found, on one process or on all together; it holds no more than a message between them.

    `error` says why the probe failed as a whole, if it did, and `remedy` what would help; `off` that it cannot measure
    this training at all. With a `lag` nothing is found yet: it comes so many optimizer steps later, or, as `lost` then
    says, never.
    """

    values: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)
    diagrams: Mapping[str, PersistenceDiagram] = field(default_factory=dict)
    again_after_step: bool = False
    seconds: float = 0.0
    error: str = ""
    remedy: str = ""
    off: bool = False
    lag: int = 0
    lost: str = ""

    @property
    def has_come(self) -> bool:
        """Whether there is something to take in: on a process or on all, something was measured."""
        return bool(self.values) or not (self.error or self.lag or self.lost)


@dataclass(frozen=True, slots=True)
class Look:
    """All that processes tell each other about one step: what each probe found, the loss, the monitor's overhead."""

    found: Mapping[str, Found]
    loss: float | None = None
    overhead: float = 0.0


class Probing:
    """The probes of one training, as long as they can measure it, and what each has found last.

    `errors` holds what the probes of the last look raised, by name, and `awaited` what they measure elsewhere.
    """

    def __init__(self, probes: Sequence[Probe], ranks: Ranks) -> None:
        self.probes = list(probes)
        self.errors: dict[str, Exception] = {}
        self.awaited = AwaitedResults()
        self._pending: dict[str, Pending] = {}
        self._ranks = ranks
        self._previous: dict[str, ProbeResult] = {}
        self._again: dict[str, bool] = {}

    def look(
        self,
        probes: Sequence[Probe],
        capturing: Capturing,
        step: int,
        now: Clouds,
        loss: float | None = None,
        overhead: float = 0.0,
    ) -> Look:
        """Run the probes here and put together what all processes have found, by one small collective.

        A probe that fails, on one process or on all, has failed in the result: no process is left waiting.
        """
        self.errors, self._pending = {}, {}
        mine = Look({probe.name: self._run(probe, capturing, step, now) for probe in probes}, loss, overhead)
        # Diagrams make longer messages than numbers: each kind of look has room of its own.
        every = self._ranks.all("+".join(mine.found), mine)
        together = {
            probe.name: self._united(probe, [look.found[probe.name] for look in every], capturing) for probe in probes
        }
        for probe in probes:
            found = together[probe.name]
            if found.off:
                self.probes.remove(probe)
            if not found.error:
                self._again[probe.name] = found.again_after_step
            if found.lag:
                pending, seconds = self._pending.get(probe.name), mine.found[probe.name].seconds
                self.awaited.add(Awaited(probe, step, capturing.epoch, found.lag, pending, seconds))
        losses = [look.loss for look in every if look.loss is not None]
        return Look(together, math.fsum(losses) / len(losses) if losses else None, every[0].overhead)

    def take_in(
        self, due: Iterable[Awaited], capturing: Capturing, most_seconds: float | None = None
    ) -> Iterator[tuple[Awaited, Found]]:
        """What was captured before and computed elsewhere, waiting for it if need be; a collective for each capture."""
        for awaited in due:
            self.errors = {}
            name, pending = awaited.probe.name, awaited.pending
            mine = Found()
            if pending is not None:
                collect, previous = pending.collect, self._previous.get(name)
                # Called at once, not later.
                mine = self._attempt(name, lambda: collect(previous, most_seconds), awaited.seconds)  # noqa: B023
            yield awaited, self._united(awaited.probe, self._ranks.all(f"{name}, later", mine), capturing)

    def _united(self, probe: Probe, every: Sequence[Found], capturing: Capturing) -> Found:
        found = united(every, is_divided(probe), {group.name: k for k, group in enumerate(capturing.groups)})
        if found.error and not found.off and probe.name not in self.errors:
            self.errors[probe.name] = ElsewhereError(f"{probe.name} failed {found.error}")
        return found

    def is_wanted_again(self, probe: Probe) -> bool:
        """Whether the probe waited for a step that has come now, or will have come when this batch is done."""
        return self._again.get(probe.name, False)

    def _run(self, probe: Probe, capturing: Capturing, step: int, now: Clouds) -> Found:
        previous = self._previous.get(probe.name)
        return self._attempt(probe.name, lambda: probe.measure(capturing.capture(probe, step, now, previous)))

    def _attempt(
        self, name: str, measure: Callable[[], ProbeResult | Pending | Mapping[str, float]], seconds: float = 0.0
    ) -> Found:
        """What a probe does here, after the `seconds` that it has taken before."""
        clock = Clock()
        try:
            result = measure()
            if isinstance(result, Pending):
                self._pending[name] = result
                return Found(lag=result.lag, seconds=clock.seconds())
            result = ProbeResult.of(result)
            found = self._found(result)
        except ProbeUnavailable as error:
            return Found(error=str(error), remedy=error.remedy, off=True)
        except ResultLost as error:
            return Found(lost=str(error))
        except Exception as error:
            self.errors[name] = error
            return Found(error=str(error) or type(error).__name__, remedy=GO_ON)
        self._previous[name] = result
        return replace(found, seconds=seconds + clock.seconds())

    def _found(self, result: ProbeResult) -> Found:
        values, diagrams = result.values, result.diagrams
        if self._ranks.size > 1:  # plain numbers, and tensors that any process can read
            values = {group: {name: float(v) for name, v in named.items()} for group, named in values.items()}
            diagrams = {name: _on_cpu(diagram) for name, diagram in diagrams.items()}
        return Found(values, result.failures, diagrams, result.again_after_step)


def united(every: Sequence[Found], divided: bool, order: Mapping[str, int]) -> Found:
    """What all processes have found, from what each has, by rank; groups in `order`.

    Of a divided probe the groups are put together, and an error leaves out those of its process. Any other probe has
    run everywhere: rank 0's values count, and an error on one process is an error.

    >>> united([Found({"a": {"r": 1.0}}), Found(error="no")], True, {"a": 0, "b": 1}).error
    'on process 1: no'
    """
    if len(every) == 1:
        return every[0]
    failed = [(rank, found) for rank, found in enumerate(every) if found.error]
    alike = len(failed) == len(every) and len({found.error for found in every}) == 1
    error = "; ".join(f"on process {rank}: {found.error}" for rank, found in failed[: 1 if alike else 3])
    united = replace(
        every[0],
        again_after_step=any(found.again_after_step for found in every),
        seconds=max(found.seconds for found in every),
        error=failed[0][1].error if alike else error,
        remedy=failed[0][1].remedy if failed else "",
        off=any(found.off for found in every),
        lag=max(found.lag for found in every),
        lost="; ".join(dict.fromkeys(found.lost for found in every if found.lost)),
    )
    if not divided:
        return replace(united, values={}, failures={}, diagrams={}) if failed else united
    values, failures, diagrams = {}, {}, {}
    for found in every:
        values |= found.values
        failures |= found.failures
        diagrams |= found.diagrams

    def by_group(name: str) -> tuple[int, str]:
        # A block's diagram is named "group[k]": it follows its group.
        return order.get(name, order.get(name.rpartition("[")[0], len(order))), name

    return replace(
        united,
        values={name: values[name] for name in sorted(values, key=lambda name: by_group(name)[0])},
        failures={name: failures[name] for name in sorted(failures, key=lambda name: by_group(name)[0])},
        diagrams={name: diagrams[name] for name in sorted(diagrams, key=lambda name: by_group(name)[0])},
    )


def _on_cpu(diagram: PersistenceDiagram) -> PersistenceDiagram:
    return replace(diagram, bars=tuple(Bars(bars.births.cpu(), bars.deaths.cpu()) for bars in diagram))
