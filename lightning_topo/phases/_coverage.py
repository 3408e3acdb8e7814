"""The state of each step of a group: exact, bounded, spanned or open."""

from dataclasses import dataclass

from lightning_topo.measurement import StepState

_CODES = frozenset(map(int, StepState))


@dataclass(frozen=True, slots=True)
class CoverageState:
    """The state of a group's last run of steps, which ended with `step`."""

    step: int
    state: StepState


def follow_coverage(
    state: CoverageState | None, begins: float, ends: int, code: float, bound: float | None
) -> CoverageState:
    """Take in a run of steps in one state: those that led from the weights at step `begins` to those at step `ends`.

    A bound that is not below 1 certifies nothing, NaN least of all; nor does a run that leaves out steps since the last
    one, that ends before it begins, or whose code is none of `StepState`.

    >>> follow_coverage(None, 0, 20, StepState.BOUNDED, 0.3)
    CoverageState(step=20, state=<StepState.BOUNDED: 2>)
    >>> follow_coverage(None, 0, 20, StepState.BOUNDED, float("nan")).state.name
    'OPEN'
    """
    known = code in _CODES
    found = StepState(int(code)) if known else StepState.OPEN
    if found is StepState.BOUNDED and bound is not None and not bound < 1.0:
        found = StepState.OPEN
    unseen = state is not None and begins > state.step + 1
    if unseen or not 0 <= begins <= ends:
        found = StepState.OPEN
    return CoverageState(ends, found)
