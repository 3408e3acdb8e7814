"""Running the probes, and putting together what several processes have found."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lightning_topo.callbacks.awaited import Awaited, AwaitedResults
from lightning_topo.callbacks.capturing import Capturing, is_divided
from lightning_topo.callbacks.ranks import ElsewhereError, Ranks
from lightning_topo.homology import Bars, PersistenceDiagram
from lightning_topo.neurons import NeuronGroup
from lightning_topo.outputs.clock import Clock
from lightning_topo.probes import Clouds, Pending, Probe, ProbeResult, ProbeUnavailable, ResultLost

GO_ON = (
    "Everything else goes on. If weights or loss are no longer finite, training has diverged: lower the learning rate."
)


@dataclass(frozen=True, slots=True)
class Found:
    """What one probe has found, on one process or on all together; it holds no more than a message between them.

    `error` says why the probe failed as a whole, if it did, and `remedy` what would help; `off` that it cannot measure
    this training at all, `lost` that a result that was awaited will never come. With a `lag`, the result is awaited.
    """

    values: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)
    diagrams: Mapping[str, PersistenceDiagram] = field(default_factory=dict)
    again_after_step: bool = False
    seconds: float = 0.0
    error: str = ""
    remedy: str = ""
    off: bool = False
    lost: bool = False
    lag: int | None = None


@dataclass(frozen=True, slots=True)
class Late:
    """What was captured at `step` and computed elsewhere."""

    probe: Probe
    step: int
    epoch: int
    found: Found


@dataclass(frozen=True, slots=True)
class Look:
    """All that processes tell each other about one step: what each probe found, the loss, the monitor's overhead."""

    found: Mapping[str, Found]
    loss: float | None = None
    overhead: float = 0.0


class Probing:
    """The probes of one training, as long as they can measure it, and what each has found last.

    `errors` holds what the probes of the last look raised, by name.
    """

    def __init__(self, probes: Sequence[Probe], ranks: Ranks) -> None:
        self.probes = list(probes)
        self.errors: dict[str, Exception] = {}
        self.awaited = AwaitedResults()
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
        self.errors = {}
        captured: dict[str, tuple[Found, Pending | None]] = {
            probe.name: self._run(probe, capturing, step, now) for probe in probes
        }
        mine = Look({name: found for name, (found, _) in captured.items()}, loss, overhead)
        # Diagrams make longer messages than numbers: each kind of look has room of its own.
        every = self._ranks.all("+".join(mine.found), mine)
        together: dict[str, Found] = {}
        for probe in probes:
            found = together[probe.name] = self._united(
                probe, [look.found[probe.name] for look in every], capturing.groups
            )
            if found.lag is not None:
                own, pending = captured[probe.name]
                pending = pending or _at_hand(found.lag, self._previous[probe.name])
                self.awaited.add(Awaited(probe, step, capturing.epoch, pending, own.seconds))
        losses = [look.loss for look in every if look.loss is not None]
        return Look(together, math.fsum(losses) / len(losses) if losses else None, every[0].overhead)

    def late(
        self, groups: Sequence[NeuronGroup], step: int | None = None, most_seconds: float | None = None
    ) -> list[Late]:
        """What is due after so many steps (None: all that is awaited), put together by one small collective.

        Every process waits for the same captures; where nothing is due there is no message.
        """
        due = list(self.awaited.due(step))
        if not due:
            return []
        self.errors = {}
        every = self._ranks.all("late", [self._collect(awaited, most_seconds) for awaited in due])
        return [
            Late(a.probe, a.step, a.epoch, self._united(a.probe, [theirs[k] for theirs in every], groups))
            for k, a in enumerate(due)
        ]

    def give_up(self, reason: str) -> list[Late]:
        """All that is awaited, as lost: where processes can no longer put it together."""
        return [Late(a.probe, a.step, a.epoch, Found(error=reason, lost=True)) for a in self.awaited.due()]

    def is_wanted_again(self, probe: Probe) -> bool:
        """Whether the probe waited for a step that has come now, or will have come when this batch is done."""
        return self._again.get(probe.name, False)

    def _united(self, probe: Probe, every: Sequence[Found], groups: Sequence[NeuronGroup]) -> Found:
        """What all processes have found by one probe, with what follows from it for the next looks."""
        found = united(every, is_divided(probe), {group.name: k for k, group in enumerate(groups)})
        if found.off and probe in self.probes:
            self.probes.remove(probe)
        elif found.error and probe.name not in self.errors:
            self.errors[probe.name] = ElsewhereError(f"{probe.name} failed {found.error}")
        if not found.error:
            self._again[probe.name] = found.again_after_step
        return found

    def _run(self, probe: Probe, capturing: Capturing, step: int, now: Clouds) -> tuple[Found, Pending | None]:
        clock = Clock()
        previous = self._previous.get(probe.name)
        made = self._attempt(probe, lambda: probe.measure(capturing.capture(probe, step, now, previous)))
        if isinstance(made, Pending):
            return Found(seconds=clock.seconds(), lag=made.lag), made
        return replace(made, seconds=clock.seconds()), None

    def _collect(self, awaited: Awaited, most_seconds: float | None) -> Found:
        clock = Clock()
        previous = self._previous.get(awaited.probe.name)
        made = self._attempt(awaited.probe, lambda: awaited.pending.collect(previous, most_seconds))
        assert isinstance(made, Found)
        return replace(made, seconds=awaited.seconds + clock.seconds())

    def _attempt(
        self, probe: Probe, measure: Callable[[], ProbeResult | Pending | Mapping[str, float]]
    ) -> Found | Pending:
        """What a probe does here; where it fails, that."""
        try:
            made = measure()
            if isinstance(made, Pending):
                return made
            result = ProbeResult.of(made)
            found = self._found(result)
        except ProbeUnavailable as error:
            return Found(error=str(error), remedy=error.remedy, off=True)
        except ResultLost as error:
            return Found(error=str(error), lost=True)
        except Exception as error:
            self.errors[probe.name] = error
            return Found(error=str(error) or type(error).__name__, remedy=GO_ON)
        self._previous[probe.name] = result
        return found

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
        lost=any(found.lost for found in every),
        lag=None if failed else max((found.lag for found in every if found.lag is not None), default=None),
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


def _at_hand(lag: int, result: ProbeResult) -> Pending:
    """A result that is there already, where other processes still wait for theirs."""
    return Pending(lag, lambda previous, most_seconds: result)


def _on_cpu(diagram: PersistenceDiagram) -> PersistenceDiagram:
    return replace(diagram, bars=tuple(Bars(bars.births.cpu(), bars.deaths.cpu()) for bars in diagram))
