"""Lines of measurements, thinned: of two that follow each other in a series one is left, with the extremes of both.

What is thinned cannot be replayed: the phases and events of a thinned record are those that were written down live.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median_high

from lightning_topo.outputs.record._branch import live_lines
from lightning_topo.outputs.record._jsonl import Line
from lightning_topo.quantities import Direction, direction

PROBE = "record"
"""Under which a record's own line says what was thinned."""
N_MERGED = "n_merged"
"""The field of a line that stands for several measurements: how many."""

_KEPT = frozenset({PROBE, "schedule", "gate", "rewind", "coverage"})


@dataclass(frozen=True, slots=True)
class Thinned:
    """Up to `until_step` a line stands for as many as `factor` measurements; `n_captures` captures were dropped."""

    until_step: int = 0
    factor: int = 1
    n_captures: int = 0

    def to_line(self) -> Line:
        """As a line among the measurements."""
        values = {"until_step": float(self.until_step), "factor": float(self.factor)}
        place = {"step": 0, "epoch": 0, "probe": PROBE, "group": "", "reference_step": 0}
        return {**place, **values, "n_captures": float(self.n_captures)}

    @classmethod
    def of(cls, values: Mapping[str, float]) -> "Thinned":
        """From the values of such a line."""
        return cls(int(values["until_step"]), int(values["factor"]), int(values["n_captures"]))


def thinned(read: Callable[[], Iterable[Line]], before: Thinned) -> Iterator[Line]:
    """The lines that are left of those that `read()` gives, twice: first what was thinned, then the lines in order.

    The newest quarter stays as it is, and so do the first line of a series and every one with a number that is not
    finite; lines that stand for more than most others wait until these have caught up. Only the last
    line of a step that was measured again is left, and no line that a rewind has abandoned. Where most lines are of
    coverage, which changes its state too often to be joined, exact and bounded steps become bounded ones.
    """
    latest = {(line["step"], *_stream(line)): i for i, line in live_lines(read) if _is_measurement(line)}
    order = sorted(latest.values())
    end = order[len(order) * 3 // 4] if order else 0
    whole = set(order)
    n_coverage = 0
    counts, ratios = [], dict[str, list[tuple[int, float]]]()
    for i, line in enumerate(read()):
        if i in whole and i < end:
            counts.append(line.get(N_MERGED, 1))
            if "critical_ratio" in line:
                ratio = line["critical_ratio"]
                ratios.setdefault(line["group"], []).append((line["step"], ratio if _is_number(ratio) else math.inf))
            n_coverage += line["probe"] == "coverage"
    level = median_high(counts) if counts else 1
    broken = {group: _above_1(found) for group, found in ratios.items()} if 2 * n_coverage > len(counts) else None

    def merged() -> Iterator[Line]:
        waiting: dict[tuple[str, str], Line] = {}
        covered: dict[str, Line] = {}
        begun: set[tuple[str, str]] = set()
        for i, line in enumerate(read()):
            if i == end:
                yield from (*waiting.values(), *covered.values())
                waiting, covered = {}, {}
            if i not in whole or line.get("probe") == PROBE:
                continue
            stream = _stream(line)
            if i < end and line["probe"] == "coverage":
                before = covered.get(line["group"])
                joined = _joined(before, line)
                if joined is None and before is not None and broken is not None and line["group"] in broken:
                    joined = _weakened(before, line, broken[line["group"]])
                if joined is None:
                    yield covered[line["group"]]
                covered[line["group"]] = joined or line
            elif i >= end or stream not in begun or line["probe"] in _KEPT or not _is_finite(line):
                begun.add(stream)
                yield line
            elif line.get(N_MERGED, 1) > level:
                # In the order of steps: what waits is older.
                if stream in waiting:
                    yield waiting.pop(stream)
                yield line
            elif stream in waiting:
                yield merge(waiting.pop(stream), line)
            else:
                waiting[stream] = line

    until, factor = before.until_step, before.factor
    for line in merged():
        if N_MERGED in line:
            until, factor = max(until, line["step"]), max(factor, line[N_MERGED])
    yield Thinned(until, factor, before.n_captures).to_line()
    yield from merged()


def _joined(first: Line | None, second: Line) -> Line | None:
    """One line of coverage for two that follow each other in one state: as certain as both; None where they do not.

    >>> one = {"step": 9, "from": 0, "state": "bounded", "bound": 0.5}
    >>> other = {"step": 19, "from": 9, "state": "bounded"}
    >>> _joined(one, other | {"bound": 0.4})
    {'step': 19, 'from': 0, 'state': 'bounded', 'bound': 0.5}
    >>> _joined(one, other | {"from": 10, "bound": 0.4}) is None
    True
    """
    if first is None:
        return second
    if (
        (first.get("state"), first.get("cause")) != (second.get("state"), second.get("cause"))
        or first["step"] != second.get("from")
        or first.keys() != second.keys()
    ):
        return None
    bounds = [line["bound"] for line in (first, second) if "bound" in line]
    if not all(isinstance(bound, int | float) for bound in bounds):
        return None
    return second | {"from": first["from"]} | ({"bound": max(bounds)} if bounds else {})


def _weakened(first: Line, second: Line, broken: Sequence[tuple[int, int]]) -> Line | None:
    """One bounded line for an exact and a bounded one that follow each other; None where r may have reached 1.

    >>> one, other = {"step": 9, "from": 8, "state": "exact"}, {"step": 19, "from": 9, "state": "bounded", "bound": 0.4}
    >>> _weakened(one, other, [])
    {'step': 19, 'from': 8, 'state': 'bounded'}
    >>> _weakened(one, other, [(12, 15)]) is None
    True
    """
    if first["step"] != second.get("from") or not (_is_certain(first) and _is_certain(second)):
        return None
    if any(low < second["step"] and first["from"] < high for low, high in broken):
        return None
    joined = second | {"from": first["from"], "state": "bounded"}
    joined.pop("bound", None)
    return joined


def _above_1(ratios: Sequence[tuple[int, float]]) -> list[tuple[int, int]]:
    """Where r may have reached 1, as open stretches of steps: a line may stand for any step between its neighbours.

    >>> _above_1([(2, 0.1), (4, 1.5), (9, 0.2)])
    [(2, 9)]
    """
    steps = [-1, *(step for step, _ in ratios), 1 << 62]
    return [(steps[k], steps[k + 2]) for k, (_, ratio) in enumerate(ratios) if not ratio < 1.0]


def _is_certain(line: Line) -> bool:
    """Whether the steps of a line were measured, or bounded below 1."""
    bound = line.get("bound", 0.0)
    return line.get("state") == "exact" or (line.get("state") == "bounded" and _is_number(bound) and bound < 1.0)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def merge(first: Line, second: Line) -> Line:
    """Merge two lines of a series into one: keep the worst value of r, expansion and contraction, else the later value.

    Its step and its pair are those of the greater critical ratio.

    >>> a, b = {"step": 1, "critical_ratio": 0.3}, {"step": 2, "critical_ratio": 0.2}
    >>> merge(a | {"contraction": 0.9}, b | {"contraction": 0.8})
    {'step': 1, 'critical_ratio': 0.3, 'contraction': 0.8, 'n_merged': 2}
    """
    line, probe = {**first, **second}, second.get("probe")
    for name in first.keys() & second.keys():
        match direction(name, probe):
            case Direction.HIGH_IS_BAD:
                line[name] = max(first[name], second[name])
            case Direction.LOW_IS_BAD:
                line[name] = min(first[name], second[name])
            case Direction.NEUTRAL:
                pass
    if first.get("critical_ratio", -math.inf) > second.get("critical_ratio", -math.inf):
        line |= {n: first[n] for n in ("step", "epoch", "critical_i", "critical_j") if n in first}
    line[N_MERGED] = first.get(N_MERGED, 1) + second.get(N_MERGED, 1)
    return line


def _stream(line: Line) -> tuple[str, str]:
    return line["probe"], line["group"]


def _is_measurement(line: Line) -> bool:
    """Whether the line is a measurement: the header is not, nor need foreign lines be."""
    kinds = {"step": int, "probe": str, "group": str}
    return all(type(line.get(name)) is kind for name, kind in kinds.items())


def _is_finite(line: Line) -> bool:
    """Whether all is numbers: those that are not finite are strings."""
    return all(isinstance(value, int | float) for name, value in line.items() if name not in ("probe", "group"))
