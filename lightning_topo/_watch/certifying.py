"""Certifying every step: by its bound where that is enough, else by measuring it."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lightning_topo._watch.bounds import LIMIT, Bounds, GroupBound, Nearest
from lightning_topo._watch.budget import Allowance, Budget
from lightning_topo._watch.coverage import Certificate, Coverage
from lightning_topo._watch.frozen_stamps import FrozenAtUpdate
from lightning_topo._watch.launched import Launched
from lightning_topo._watch.many_neurons import is_measurable
from lightning_topo._watch.outcome import Outcome
from lightning_topo._watch.probing import Probing
from lightning_topo._watch.snapshots import Snapshots
from lightning_topo._watch.steps import Steps
from lightning_topo.measurement import OpenCause, StepState
from lightning_topo.neurons import NeuronGroup
from lightning_topo.probes import Clouds, Distortion, Probe
from lightning_topo.probes._distortion import Carried

RENEW_STEPS = 10
"""A measurement of all groups takes a new snapshot if the last one is this many steps old."""

_DROPS = ("p", "dropout", "drop_prob")
"""Attributes of modules that hold a probability to drop something."""

_UNKNOWN = GroupBound(math.inf, math.inf)


def waits(device: torch.device) -> bool:
    """Whether reading a bound waits until the device has finished all earlier work."""
    return device.type == "cuda"


@dataclass(frozen=True, slots=True)
class _Step:
    """A step whose bounds are on their way."""

    step: int
    epoch: int
    groups: Sequence[NeuronGroup]
    bounds: Launched


class Certifying:
    """Notes in `coverage` a certificate of each step of this process's groups.

    `probe` is the `Distortion` of the run, if it has one.

    Groups are measured exactly when the probe is due, and where the bound of the step reaches 0.9, as long as that
    takes a small share of the time. Without the probe nothing is certified.

    A group of more than `MAX_ROWS` neurons is never measured: where its bound reaches 0.9, it gets a new snapshot as
    soon as that is paid for by the same share of the time. In the groups `keeps_merged` no merged neurons part again:
    only there a span excludes that any have merged in between.

    Where reading a bound would wait for the device, it is read just before the next update, as long as the parameters
    before and after the step are still there: until then the step `is_awaited`.

    `frozen` tells what something has written to frozen parameters since the last update.
    """

    def __init__(
        self,
        snapshots: Snapshots,
        steps: Steps,
        probing: Probing,
        coverage: Coverage,
        allowance: Allowance,
        frozen: FrozenAtUpdate,
        *,
        keeps_merged: Collection[str] = (),
    ) -> None:
        self.probe: Distortion | None = next((probe for probe in probing.probes if isinstance(probe, Distortion)), None)
        self._snapshots, self._steps, self._probing = snapshots, steps, probing
        self._coverage, self._allowance = coverage, allowance
        self._bounds: Bounds | None = None
        self._measured_at = self._renewed_at = -1
        self._keeps_merged, self._modes = frozenset(keeps_merged), _modes(snapshots.module)
        self._awaited: _Step | None = None
        self._frozen = frozen

    def _late(self) -> set[str]:
        """The groups in which something has written to what is frozen since the update: r of it is not known."""
        written = self._frozen.written()
        beside = self._snapshots.beside(self._steps.trained()) if written else {}
        return {name for name, own in beside.items() if not written.isdisjoint(own)}

    @property
    def is_awaited(self) -> bool:
        """Whether the last step's bounds have not been read yet."""
        return self._awaited is not None

    def moved_outside(self) -> None:
        """Something other than an update has moved parameters."""
        if self._bounds is not None:
            self._bounds.forget_path()

    def leave_open(
        self,
        step: int,
        cause: OpenCause,
        names: Sequence[str] | None = None,
        *,
        groups: Sequence[str] | None = None,
    ) -> None:
        """An update that moved these parameters, by default all, was not measured: the step is open.

        Of all groups with these parameters, or of these `groups` among them.
        """
        moved = [g for g in self._snapshots.own if names is None or not set(names).isdisjoint(g.parameter_names)]
        chosen = [group.name for group in moved if groups is None or group.name in groups]
        self._coverage.note(step, dict.fromkeys(chosen, Certificate.open(cause)))
        self.moved_outside()

    def settle(
        self, step: int, epoch: int, due: Sequence[Probe], budget: Budget, *, at_once: bool = True
    ) -> list[Outcome]:
        """Certify the updates of this batch, and return what was measured for it; unless `at_once`, `finish` does."""
        probe = self.probe
        if probe is None or probe not in self._probing.probes:
            return []
        if self._snapshots.sharding != "whole":
            return self._settle_sharded(step, epoch, probe in due)
        active = {group.name for group in self._snapshots.active()}
        touched = self._snapshots.touched()
        groups = [group for group in touched if group.name in active]
        moved = {group.name for group in touched}
        self._coverage.rest(step, (group.name for group in self._snapshots.own if group.name not in moved))
        # Those with parameters that are gone, or have another name or shape.
        gone = [group.name for group in touched if group.name not in active]
        self._coverage.note(step, {name: Certificate.open(OpenCause.MOVED) for name in gone})
        if not groups:
            return []
        due = due if any(map(is_measurable, groups)) else ()
        if self._bounds is None:
            # The first step is measured; what that finds of distances serves the first snapshot, of where it ends. Its
            # time belongs to the start: on a GPU it loads the kernels of all later ones.
            late = self._late()
            self._coverage.note(step, {g.name: Certificate.open(OpenCause.MOVED) for g in groups if g.name in late})
            groups = [group for group in groups if group.name not in late]
            outcome = self._measure(probe, step, epoch, groups, self._snapshots.now())
            self._measured_at = step
            bounds: Mapping[str, GroupBound] = {}
            if outcome.values.keys() >= {group.name for group in groups}:
                self._bounds = self._bounds_from(self._steps.trained(), self._nearest(outcome))
            else:  # a group that cannot be measured has a bound, from where the step began
                launched = self._launch()
                assert self._bounds is not None
                bounds = self._bounds.read(launched)
            self._note(step, groups, [outcome], bounds)
            return [outcome]
        awaited = _Step(step, epoch, groups, self._launch())
        if not at_once and probe not in due and waits(awaited.bounds.moved.device):
            self._awaited = awaited
            return []
        return self._certify(awaited, budget, is_due=probe in due)

    def finish(self, budget: Budget, *, stands: bool) -> list[Outcome]:
        """Certify the awaited step; it can be measured only if the parameters are still as it left them (`stands`)."""
        awaited, self._awaited = self._awaited, None
        if awaited is None or self._bounds is None:
            return []
        if stands:
            still = self._bounds.still(awaited.bounds)
            self._bounds.doubt(still)
            reached = not all(bound < LIMIT for bound in awaited.bounds.values())
            stands = not reached or bool(still)  # that waits for the device, as the measurement does
        return self._certify(awaited, budget, stands=stands)

    def _certify(self, awaited: _Step, budget: Budget, *, is_due: bool = False, stands: bool = True) -> list[Outcome]:
        """Measure a step as far as its bounds, or the time, ask for it; renew what they stand on, and note the rest."""
        probe = self.probe
        assert probe is not None
        assert self._bounds is not None
        step, groups, bounds = awaited.step, awaited.groups, self._bounds.read(awaited.bounds, stands=stands)
        late = self._late()
        bounds |= {name: _UNKNOWN for name in late if not self._bounds.leaves_out_frozen(name)}
        began = budget.seconds()
        reached = {group.name for group in groups if not bounds[group.name].step < LIMIT}
        few = [group for group in groups if is_measurable(group)]
        asked = [group for group in few if (is_due or group.name in reached) and group.name not in late]
        anew = reached.intersection(late)
        if not (is_due or (stands and self._allowance.allows(budget))):
            asked, anew = [], set()
        outcomes: list[Outcome] = []
        if asked:
            outcomes = [self._measure(probe, step, awaited.epoch, asked, self._snapshots.now(), self._last(step))]
            self._measured_at = step
        is_old = len(asked) == sum(group.name not in late for group in few) and self._bounds.n_steps >= RENEW_STEPS
        wants_all = is_old or any(group.name in reached for group in few)
        renews_many = any(not is_measurable(g) and g.name in reached for g in groups) and stands
        renews_many = renews_many and self._may_renew_many(step, budget)
        measured = outcomes[0] if wants_all and outcomes and outcomes[0].values else None
        self._renew(measured, step, of_many=renews_many, anew=anew)
        if renews_many or not is_due:
            self._allowance.spent += budget.seconds() - began
        unless = OpenCause.FAILED if asked else OpenCause.NOT_MEASURED if stands else OpenCause.MOVED
        self._note(step, groups, outcomes, bounds, unless, late)
        return outcomes

    def _note(
        self,
        step: int,
        groups: Sequence[NeuronGroup],
        found: Sequence[Outcome],
        bounds: Mapping[str, GroupBound],
        cause: OpenCause = OpenCause.FAILED,
        late: Collection[str] = (),
    ) -> None:
        """Note each group's certificate: exact where it was measured; `cause` says why others are open.

        Of the groups `late` something has written to what is frozen, since the update.
        """
        exact = {group: values["critical_ratio"] for outcome in found for group, values in outcome.values.items()}
        certificates = {
            g.name: _certificate(
                exact.get(g.name),
                bounds.get(g.name, _UNKNOWN),
                OpenCause.MOVED if g.name in late else _cause(g, cause),
            )
            for g in groups
        }
        if any(one.state is StepState.SPANNED for one in certificates.values()):
            proved = self._keeps_merged if self._spans_prove() else frozenset[str]()
            certificates = {name: one if name in proved else _without_span(one) for name, one in certificates.items()}
        self._coverage.note(step, certificates)

    def _spans_prove(self) -> bool:
        """Whether a span of a group that `keeps_merged` neurons excludes that any merged and parted in between.

        Only where merged neurons stay together (lemma 1 of the paper): under an optimizer that treats neurons alike, in
        a network that drops what it did when its neurons were found, and while nothing else moves them.
        """
        known = all(type(o).__module__.startswith("torch.optim") for o in self._steps.optimizers)
        was_moved = self._bounds is None or self._bounds.was_moved_outside
        return known and not was_moved and self.drops_as_before()

    def drops_as_before(self) -> bool:
        """Whether the network drops what it did when these neurons were found."""
        return self._modes == _modes(self._snapshots.module)

    def _measure(
        self,
        probe: Probe,
        step: int,
        epoch: int,
        groups: Sequence[NeuronGroup],
        now: Clouds,
        last: Clouds | None = None,
    ) -> Outcome:
        return self._probing.run(
            probe,
            lambda previous: replace(self._snapshots.capture(probe, step, now, previous, groups), last=last),
            step,
            epoch,
        )

    def _last(self, step: int) -> Clouds | None:
        """The clouds of the last snapshot, where steps that were not measured lie between."""
        bounds = self._bounds
        return bounds.last if bounds is not None and bounds.n_steps > 1 and self._measured_at < step - 1 else None

    def _settle_sharded(self, step: int, epoch: int, is_due: bool) -> list[Outcome]:
        """Measure or leave open the steps of sharded parameters: a bound would gather them every time."""
        groups = self._snapshots.active()
        self._coverage.rest(step, (group.name for group in self._snapshots.own if group not in groups))
        outcomes = []
        if is_due and self.probe is not None:
            now = self._snapshots.now()
            if self._snapshots.before(step) is not None:
                outcomes = [self._measure(self.probe, step, epoch, groups, now)]
            self._snapshots.after_step(step, now)
        measured = {name for outcome in outcomes for name in outcome.values}
        left = Certificate.open(OpenCause.FAILED if outcomes else OpenCause.SHARDED)
        exact = Certificate(StepState.EXACT)
        self._coverage.note(step, {group.name: exact if group.name in measured else left for group in groups})
        return outcomes

    def _launch(self) -> Launched:
        """Begin to bound the present updates; without a snapshot, take one of the clouds before them."""
        before, after = self._steps.before(), self._steps.trained()
        bounds, present = self._bounds, (self._snapshots.active(), self._steps.generation)
        if bounds is None or bounds.names != after.keys() or (bounds.groups, bounds.generation) != present:
            bounds = self._bounds = self._bounds_from(before)
        return bounds.launch(before, after)

    def _bounds_from(self, parameters: Mapping[str, Tensor], nearest: Nearest | None = None) -> Bounds:
        generation, beside = self._steps.generation, self._snapshots.beside(parameters)
        return Bounds(self._snapshots.active(), parameters, nearest=nearest, generation=generation, beside=beside)

    def _may_renew_many(self, step: int, budget: Budget) -> bool:
        """Whether a new snapshot of the groups that are too large to measure is paid for in advance."""
        assert self._bounds is not None
        is_time = step >= self._renewed_at + RENEW_STEPS
        return is_time and self._allowance.allows(budget, self._bounds.many.seconds)

    def _renew(self, measured: Outcome | None, step: int, *, of_many: bool, anew: Collection[str]) -> None:
        """Take a new snapshot of the groups that were `measured`, if any, and of the larger ones if it is `of_many`.

        And of those `anew` which could not be measured.
        """
        bounds = self._bounds
        if bounds is None or not (measured is not None or of_many or anew):
            return
        is_new = {g.name: measured is not None if is_measurable(g) else of_many for g in bounds.groups}
        carries = {name for name, taken in is_new.items() if not taken and name not in anew}
        nearest = {} if measured is None else self._nearest(measured)
        bounds.renew(self._steps.trained(), nearest, carries=carries)
        self._renewed_at = step if of_many else self._renewed_at

    def _nearest(self, measured: Outcome) -> Nearest:
        """What a measurement has found of the distances to nearest neighbours."""
        assert self.probe is not None
        # Of a measurement that failed, what an earlier one has left says nothing about now.
        carried = self._probing.carried(self.probe) if measured.failure is None else None
        return carried.nearest if isinstance(carried, Carried) else {}


def _cause(group: NeuronGroup, cause: OpenCause) -> OpenCause:
    """Why a group is open that was not measured because of `cause`, if it could have been measured at all."""
    return cause if is_measurable(group) or cause is OpenCause.MOVED else OpenCause.TOO_MANY


def _modes(module: nn.Module) -> list[tuple[object, ...]]:
    """What modules do that behave differently in training, and with which probabilities."""
    return [
        (one.training, *(p for name in _DROPS if isinstance(p := getattr(one, name, None), float | int)))
        for one in module.modules()
    ]


def _without_span(one: Certificate) -> Certificate:
    return replace(one, state=StepState.OPEN) if one.state is StepState.SPANNED else one


def _certificate(ratio: float | None, bound: GroupBound, cause: OpenCause) -> Certificate:
    if ratio is not None:
        return Certificate(StepState.EXACT, ratio)
    if bound.step < 1.0:
        return Certificate(StepState.BOUNDED, bound.step)
    state = StepState.SPANNED if bound.span < 1.0 else StepState.OPEN
    if math.isnan(bound.step):
        return Certificate(state, cause=OpenCause.NOT_FINITE)
    return Certificate(state, bound.step, cause)
