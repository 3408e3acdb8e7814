"""The outcome of one probe at one step, on one process or on all together."""

import numbers
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from torch import Tensor

from lightning_topo.homology import Bars, PersistenceDiagram
from lightning_topo.measurement import Measurement
from lightning_topo.quantities import RESERVED_VALUES, Keep, quantity


class FailureKind(Enum):
    """The consequence of a probe's failure for its later measurements."""

    FAILED = "failed"
    """This measurement failed; the next one may not."""
    UNAVAILABLE = "unavailable"
    """The probe cannot measure this training at all."""
    LOST = "lost"
    """A result that was awaited will never come."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a probe has no result, and a remedy."""

    message: str
    remedy: str = ""
    kind: FailureKind = FailureKind.FAILED


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one probe at one step, small enough to send between ranks.

    `values` holds named numbers by group; `problems` says for a group why it could not be measured, `refused` for a
    value why it is not taken, and `notes` are sentences for the record. `lag` is set if the result is still being
    computed: the number of steps until it is due.
    """

    probe: str
    step: int
    epoch: int
    values: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    diagrams: Mapping[str, PersistenceDiagram] = field(default_factory=dict)
    failure: Failure | None = None
    again_after_step: bool = False
    seconds: float = 0.0
    lag: int | None = None

    def measurements(self) -> Iterator[Measurement]:
        """One measurement for each group."""
        for group, values in self.values.items():
            yield Measurement(self.step, self.epoch, self.probe, group, values)


def plain_values(
    values: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """The values of a probe as plain numbers, and of each that is refused the reason.

    >>> plain_values({"": {"norm": 2, "epoch": 1.0, "name": "net"}})  # doctest: +NORMALIZE_WHITESPACE
    ({'': {'norm': 2.0}}, {'epoch': "expected a name that is not a field of the record's lines, got 'epoch': rename it",
                           'name': "expected a number for 'name', got str"})
    """
    taken: dict[str, dict[str, float]] = {}
    refused: dict[str, str] = {}
    for group, named in values.items():
        own = taken[str(group)] = {}
        for name, value in named.items():
            if name in RESERVED_VALUES:
                refused[str(name)] = (
                    f"expected a name that is not a field of the record's lines, got {name!r}: rename it"
                )
                continue
            number = _number(value)
            if number is None:
                shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
                refused[str(name)] = f"expected a number for {name!r}, got {type(value).__name__}{shape}"
            else:
                own[str(name)] = number
    return taken, refused


def _number(value: Any) -> float | None:
    if isinstance(value, bool | numbers.Real) or getattr(value, "ndim", None) == 0 or getattr(value, "size", None) == 1:
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError, RuntimeError):
            return None
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        return float(value)
    return None


def united(every: Sequence[Outcome], divided: bool, order: Mapping[str, int]) -> Outcome:
    """The outcome of all processes together, from the outcome of each, by rank; groups in `order`.

    Of a divided probe the groups are put together, and a failure leaves out those of its process. Any other probe has
    run everywhere: rank 0's values count, and a failure on one process is a failure.

    >>> ours = Outcome("p", 1, 0, {"a": {"r": 1.0}})
    >>> united([ours, Outcome("p", 1, 0, failure=Failure("no"))], True, {"a": 0, "b": 1}).failure.message
    'on process 1: no'
    """
    if len(every) == 1:
        return every[0]
    failed = [(rank, one.failure) for rank, one in enumerate(every) if one.failure is not None]
    failure = None
    if failed:
        alike = len(failed) == len(every) and len({one.message for _, one in failed}) == 1
        message = "; ".join(f"on process {rank}: {one.message}" for rank, one in failed[:3])
        worst = max((one for _, one in failed), key=lambda one: list(FailureKind).index(one.kind))
        failure = replace(worst, message=worst.message if alike else message, remedy=failed[0][1].remedy)
    together = replace(
        every[0],
        again_after_step=any(one.again_after_step for one in every),
        seconds=max(one.seconds for one in every),
        failure=failure,
        refused={name: why for one in every for name, why in one.refused.items()},
        lag=None if failed else max((one.lag for one in every if one.lag is not None), default=None),
    )
    if not divided:
        return replace(together, values={}, problems={}, diagrams={}) if failed else together

    def place(name: str) -> int:
        # A block's diagram is named "group[k]": it follows its group.
        return order.get(name, order.get(name.rpartition("[")[0], len(order)))

    def merged(part: str) -> dict[str, Any]:
        found = {name: value for one in every for name, value in getattr(one, part).items()}
        return {name: found[name] for name in sorted(found, key=place)}

    return replace(together, values=merged("values"), problems=merged("problems"), diagrams=merged("diagrams"))


def joined(first: Outcome, second: Outcome) -> Outcome:
    """Two measurements of one probe at one step, of two updates in one batch: each quantity as a row would keep it.

    >>> twice = [Outcome("distortion", 1, 0, {"net.0": {"critical_ratio": r}}) for r in (0.3, 0.2)]
    >>> joined(*twice).values
    {'net.0': {'critical_ratio': 0.3}}
    """
    values = {group: dict(named) for group, named in first.values.items()}
    for group, named in second.values.items():
        known = values.setdefault(group, {})
        for name, value in named.items():
            row = quantity(name, second.probe)
            keep = Keep.LAST if row is None else row.keep
            if name in known and keep is not Keep.LAST:
                value = max(known[name], value) if keep is Keep.MAX else min(known[name], value)
            known[name] = value
    return replace(
        second,
        values=values,
        problems={**first.problems, **second.problems},
        notes=(*first.notes, *second.notes),
        refused={**first.refused, **second.refused},
        diagrams={**first.diagrams, **second.diagrams},
        failure=second.failure or first.failure,
        again_after_step=first.again_after_step or second.again_after_step,
        seconds=first.seconds + second.seconds,
    )


def portable(outcome: Outcome) -> Outcome:
    """The outcome with tensors that any process can read."""
    diagrams = {
        name: replace(diagram, bars=tuple(Bars(bars.births.cpu(), bars.deaths.cpu()) for bars in diagram))
        for name, diagram in outcome.diagrams.items()
    }
    return replace(outcome, diagrams=diagrams)
