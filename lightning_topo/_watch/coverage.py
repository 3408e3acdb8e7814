"""The state of every step by group: exact, bounded, spanned or open."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lightning_topo.measurement import Measurement, OpenCause, StepState

_MOST_RECENT = 1000
"""Of so many steps it is remembered that they count as open."""

MOST_STEPS = 1000
"""A run of equal states is written down at least so often: a killed process loses no more."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """The state of one step of one group, with an upper bound of its critical ratio where one is known.

    `cause` says why r of a spanned or open step is not known.
    """

    state: StepState
    bound: float | None = None
    cause: OpenCause | None = None

    @staticmethod
    def open(cause: OpenCause) -> "Certificate":
        """Nothing is known of the step."""
        return Certificate(StepState.OPEN, cause=cause)

    def and_of(self, other: "Certificate") -> "Certificate":
        """Both are of one step, of an update each: what is known of the largest r of the two.

        >>> Certificate(StepState.EXACT, 5.0).and_of(Certificate(StepState.BOUNDED, 0.1)).state.name
        'EXACT'
        >>> Certificate(StepState.EXACT, 0.01).and_of(Certificate(StepState.BOUNDED, 0.1)).state.name
        'BOUNDED'
        """
        weaker, stronger = sorted((self, other), key=lambda one: one.state)
        if stronger.bound is None or weaker.bound is None:  # where nothing is known of one, nothing is of the larger
            return weaker
        if not weaker.state.certified or weaker.bound >= stronger.bound:
            return replace(weaker, bound=max(weaker.bound, stronger.bound))
        return stronger


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Consecutive steps of one group in the same state, or without a move.

    `own` is the last one's certificate, `bound` the largest of all, and `earlier` the largest of those before the last.
    """

    since: int
    last: int
    own: Certificate
    bound: float | None
    written: int
    earlier: float | None = None

    def joined(self, step: int, certificate: Certificate) -> "_Stretch":
        bounds = [bound for bound in (self.bound, certificate.bound) if bound is not None]
        return replace(self, last=step, own=certificate, bound=max(bounds, default=None), earlier=self.bound)

    def without_last(self) -> "_Stretch":
        own = replace(self.own, bound=self.earlier)
        return replace(self, last=self.last - 1, own=own, bound=self.earlier, earlier=None)


@dataclass(slots=True)
class Coverage:
    """Keeps the states of the steps of one process's groups, as one line for each run of equal states.

    In steps in which a group is known to `rest` its r is 0: they belong to the run of its next one, if that one is
    certified.

    >>> coverage = Coverage()
    >>> coverage.note(1, {"net.0": Certificate(StepState.EXACT)})
    >>> coverage.note(2, {"net.0": Certificate(StepState.BOUNDED, 0.1)})
    >>> coverage.note(3, {"net.0": Certificate(StepState.BOUNDED, 0.2)})
    >>> [(m.values["from"], m.step, StepState(int(m.values["state"])).name) for m in coverage.lines(0, flush=True)]
    [(0.0, 1, 'EXACT'), (1.0, 3, 'BOUNDED')]
    """

    uncertified: dict[int, StepState] = field(default_factory=dict)
    _bounds: dict[str, float] = field(default_factory=dict)
    _stretches: dict[str, _Stretch] = field(default_factory=dict)
    _ended: list[tuple[str, _Stretch]] = field(default_factory=list)
    _noted: dict[str, int] = field(default_factory=dict)  # the last step that a line has or will have
    _known: dict[str, int] = field(default_factory=dict)  # the last step up to which nothing is left out
    _written: dict[str, StepState] = field(default_factory=dict)  # the state of the last line

    def note(self, step: int, certificates: Mapping[str, Certificate]) -> None:
        """Note the states of one step; of its second update, what is known of the larger r of both."""
        for group, certificate in certificates.items():
            self._note(step, group, certificate)
            if certificate.bound is not None:
                self._bounds[group] = max(certificate.bound, self._bounds.get(group, 0.0))
            if certificate.state in (StepState.SPANNED, StepState.OPEN):
                weakest = self.uncertified.get(step, StepState.SPANNED)
                is_open = StepState.OPEN in (weakest, certificate.state)
                self.uncertified[step] = StepState.OPEN if is_open else StepState.SPANNED

    def open_past(self, group: str, steps: Sequence[int], last: int, cause: OpenCause) -> None:
        """Note that these steps, in which the network was open, moved a group of which nothing was noted.

        It rests in the others up to `last`; of those before the first of them nothing is noted.
        """
        if group in self._noted or not steps:
            return
        opened = set(steps)
        for step in range(min(steps), last + 1):
            if step in opened:
                self._note(step, group, Certificate.open(cause))
            else:
                self.rest(step, [group])

    def rest(self, step: int, groups: Iterable[str]) -> None:
        """Note groups that a step does not move."""
        for group in groups:
            known = self._known.setdefault(group, step - 1)
            self._noted.setdefault(group, step - 1)
            if known == step - 1:
                self._known[group] = step

    @property
    def has_news(self) -> bool:
        """Whether steps have become open, which a reader should know at once."""
        return any(
            stretch.own.state is StepState.OPEN and stretch.written < stretch.since
            for stretch in self._stretches.values()
        )

    def lines(self, epoch: int, *, flush: bool = False) -> list[Measurement]:
        """The lines not written yet: of stretches that ended, that are long, and of new ones that a reader waits for.

        Those are the open ones, certified ones of groups whose last line was not, and the first one of a group if no
        measurement speaks of it. All lines to `flush`.
        """
        due = [(group, stretch) for group, stretch in self._ended if stretch.written < stretch.last]
        self._ended = []
        for group, stretch in self._stretches.items():
            is_new = stretch.written < stretch.since
            is_long = stretch.last - stretch.written >= MOST_STEPS
            written = next((one.own.state for name, one in reversed(due) if name == group), self._written.get(group))
            is_first = written is None and stretch.own.state is StepState.BOUNDED
            is_again = written is not None and stretch.own.state.certified and not written.certified
            is_awaited = stretch.own.state is StepState.OPEN or is_first or is_again
            if stretch.written < stretch.last and (flush or is_long or (is_new and is_awaited)):
                due.append((group, stretch))
                self._stretches[group] = replace(stretch, written=stretch.last)
        self._written |= {group: stretch.own.state for group, stretch in due}
        return [_line(group, stretch, epoch) for group, stretch in due]

    def cut(self) -> None:
        """End all stretches here, so that a resume from this step abandons no line that begins before it."""
        self._ended += self._stretches.items()
        self._stretches = {}
        for group, known in self._known.items():
            if (noted := self._noted[group]) < known:
                self._ended.append((group, _at_rest(noted, known)))
                self._noted[group] = known

    def _without_last(self, group: str, stretch: _Stretch) -> _Stretch | None:
        """Take the last step, whose state turns out another, out of the stretch that it ends."""
        shorter = stretch.without_last()
        self._noted[group] = self._known[group] = shorter.last
        if shorter.since <= shorter.last:
            return shorter
        del self._stretches[group]
        return None

    def take_bounds(self) -> dict[str, float]:
        """The largest bound of each group since the last call, or r itself where it was measured."""
        found, self._bounds = self._bounds, {}
        return found

    def take_uncertified(self) -> dict[int, StepState]:
        """Steps since the last call with a group that is spanned or open."""
        found, self.uncertified = self.uncertified, {}
        return found

    def _note(self, step: int, group: str, certificate: Certificate) -> None:
        stretch = self._stretches.get(group)
        if stretch is not None and stretch.last == step:
            certificate = stretch.own.and_of(certificate)
            stretch = self._without_last(group, stretch)
        follows = self._known.get(group, step - 1) >= step - 1
        noted = min(self._noted.get(group, step - 1), step - 1) if follows else step - 1
        self._noted[group] = self._known[group] = step
        if noted < step - 1 and certificate.state in (StepState.SPANNED, StepState.OPEN):
            self._ended += [(group, one) for one in (stretch, _at_rest(noted, step - 1)) if one is not None]
            stretch, noted = None, step - 1
        if (
            stretch is not None
            and follows
            and (stretch.own.state, stretch.own.cause) == (certificate.state, certificate.cause)
        ):
            self._stretches[group] = stretch.joined(step, certificate)
            return
        if stretch is not None:
            self._ended.append((group, stretch))
        self._stretches[group] = _Stretch(noted + 1, step, certificate, certificate.bound, noted)


def _at_rest(since: int, last: int) -> _Stretch:
    """The steps after `since` up to `last`, none of which has moved the group."""
    return _Stretch(since + 1, last, Certificate(StepState.BOUNDED, 0.0), 0.0, since)


@dataclass(slots=True)
class Shares:
    """How many of all steps are certified in every group, or at least spanned."""

    n_steps: int = 0
    n_spanned: int = 0
    n_open: int = 0
    _recent: dict[int, StepState] = field(default_factory=dict, init=False, compare=False)

    def take(self, n_steps: int, uncertified: Mapping[int, StepState], *, certifies: bool = True) -> None:
        """Count in `n_steps` more, of which those named are not certified; none where nothing `certifies` steps.

        What turns out of an earlier step later on counts once.
        """
        self.n_steps += n_steps
        if not certifies:
            self.n_open += n_steps
            return
        recent = dict(self._recent)
        for step, state in uncertified.items():
            weaker = min(state, before) if (before := recent.get(step)) is not None else state
            self.n_open += (weaker is StepState.OPEN) - (before is StepState.OPEN)
            self.n_spanned += (weaker is StepState.SPANNED) - (before is StepState.SPANNED)
            recent[step] = weaker
        self._recent = {step: recent[step] for step in sorted(recent)[-_MOST_RECENT:]}

    def counts(self) -> dict[str, int]:
        """What a checkpoint holds."""
        return {"n_steps": self.n_steps, "n_spanned": self.n_spanned, "n_open": self.n_open}

    def values(self) -> dict[str, float]:
        """As published; nothing before the first step."""
        if self.n_steps == 0:
            return {}
        certified = self.n_steps - self.n_spanned - self.n_open
        return {"coverage": certified / self.n_steps, "coverage_span": self.n_spanned / self.n_steps}


def _line(group: str, stretch: _Stretch, epoch: int) -> Measurement:
    # From the weights after step `from` to those after `step`: earlier steps are written already.
    values = {"from": float(stretch.written), "state": float(stretch.own.state)}
    if stretch.bound is not None and stretch.own.state is not StepState.EXACT:
        values["bound"] = stretch.bound
    if stretch.own.cause is not None:
        values["cause"] = float(stretch.own.cause)
    return Measurement(stretch.last, epoch, "coverage", group, values)
