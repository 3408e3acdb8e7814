"""Shrink an update that is too large: measure its critical ratio by group, and keep only a part of it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_topo._watch.bounds import Bounds
from lightning_topo._watch.parameter_names import Form, form
from lightning_topo._watch.ranks import Ranks
from lightning_topo._watch.steps import Steps
from lightning_topo._watch.training import Training
from lightning_topo._watch.updates import Update
from lightning_topo.geometry import resolved_critical_ratio
from lightning_topo.geometry._precision import wide_dtype
from lightning_topo.neurons import NeuronGroup
from lightning_topo.neurons._partly_trained import Beside, frozen_beside
from lightning_topo.probes._probe import blocks

_TRIES = 3
_HAIR = 1e-4
_MOST_TURNS = 4
"""Of so many sets of parameters that are trained in turn bounds are kept."""


@dataclass(frozen=True, slots=True)
class GuardedUpdate:
    """The outcome of one guarded update of one optimizer.

    `proposed` holds the critical ratio by group of the update as the optimizer made it, and `factor` is the fraction of
    it that was taken: 1 as it was, 0 not at all. `critical_ratio` is that of the update taken, the worst group's,
    measured from the stored parameters in float64. Where an update passes, both may be upper bounds.
    """

    proposed: Mapping[str, float]
    factor: float
    critical_ratio: float

    @property
    def proposed_critical_ratio(self) -> float:
        """The largest proposed ratio of all groups."""
        return max(self.proposed.values(), default=0.0)


def hold(
    update: Update, ratios: Callable[[], Mapping[str, float]], max_ratio: float, *, tries: int = _TRIES
) -> GuardedUpdate:
    """Keep the largest part of an update that has r <= `max_ratio`; drop an infinite update.

    `ratios` measures the critical ratio by group of the update as it stands now. The part max_ratio / r is what a
    smaller learning rate would have done, for any rule linear in it; r is measured again from the stored parameters,
    and after `tries` attempts above `max_ratio` the update is dropped. On return the parameters hold the part kept.
    """
    proposed = ratios()
    ratio = max(proposed.values(), default=0.0)
    if ratio <= max_ratio:
        return GuardedUpdate(proposed, 1.0, ratio)
    values, factor, margin = proposed_values(update), 1.0, _HAIR
    for _ in range(tries if math.isfinite(ratio) else 0):
        factor *= max_ratio / ratio * (1.0 - margin)
        take_part(update, values, factor)
        ratio = max(ratios().values())
        if ratio <= max_ratio:
            return GuardedUpdate(proposed, factor, ratio)
        margin *= 100.0 / 3.0
    drop(update)
    return GuardedUpdate(proposed, 0.0, 0.0)


def is_idle(update: Update) -> bool:
    """Whether an update has moved nothing, as of a batch without a loss: there is nothing to hold, or to find."""
    return all(torch.equal(update.before[name], now) for name, now in _each(update))


def worst_of_all(found: Mapping[str, float], ranks: Ranks) -> dict[str, float]:
    """The largest ratio of each group over all processes, so that all hold alike; a collective where there are any."""
    every = ranks.all("guard", dict(found)) if found else [found]
    return {name: max(theirs.get(name, 0.0) for theirs in every) for name in found}


def cannot_hold(guard: str, optimizers: Sequence[object]) -> str:
    """Why a guard must stop the training: updates that no hook has seen."""
    names = ", ".join(dict.fromkeys(type(optimizer).__name__ for optimizer in optimizers))
    return (
        f"{guard} cannot hold what it cannot see: parameters moved, and {names or 'an optimizer of your own'} does not "
        "step through torch's Optimizer.step. Step by `optimizer.step()` of a class that calls "
        "`torch.optim.Optimizer.__init__`, or leave the guard out."
    )


@dataclass(slots=True)
class _Present:
    """The groups that have a part in the parameters that are trained, with these `forms`, and bounds for them.

    `beside` is what is frozen of their neurons.
    An exact pass waits until the `waited` updates above the limit are more than `wait`, before it renews the bounds.
    """

    forms: Mapping[str, Form]
    groups: tuple[NeuronGroup, ...]
    beside: Beside
    bounds: Bounds | None = None
    wait: int = 0
    waited: int = 0


class UpdateRatios:
    """The critical ratios by group of updates: upper bounds where none exceeds `max_ratio`, else exact for all groups.

    An exact pass over groups that are all right makes the next bounds tighter, unless that did not help the last time:
    then it waits twice as long. All processes decide alike. `n_exact` counts the exact passes. Groups that do not fit
    their parameters any more, as where a layer has become wider, are left out.
    """

    def __init__(self, groups: Sequence[NeuronGroup], max_ratio: float, training: Training, steps: Steps) -> None:
        self.n_exact = 0
        self._groups, self._max_ratio = tuple(groups), max_ratio
        self._module, self._ranks, self._steps = training.module, training.ranks, steps
        self._present: dict[tuple[int, frozenset[str]], _Present] = {}

    def look_at(self, groups: Sequence[NeuronGroup]) -> None:
        """Measure these groups from now on."""
        if tuple(groups) != self._groups:
            self._groups, self._present = tuple(groups), {}

    def release(self) -> None:
        """Let all copies go."""
        self._present = {}

    def of(self, update: Update) -> dict[str, float]:
        """The ratios of an update as it stands now; the same on every process, which all ask for it."""
        trained = {**self._steps.trained(), **{name: p.detach() for name, p in update.after.items()}}
        present = self._among(trained)
        bounds = worst_of_all(_bounded(update, trained, present), self._ranks)
        if all(bound <= self._max_ratio for bound in bounds.values()):
            present.wait = present.waited = 0
            return bounds
        self.n_exact += 1
        ratios = update_ratios(update, present.groups, trained, self._max_ratio, present.beside)
        ratios = worst_of_all(ratios, self._ranks)
        present.waited += 1
        if present.bounds is not None and present.waited > present.wait and max(ratios.values()) <= self._max_ratio:
            present.bounds.renew(trained)
            present.wait, present.waited = max(1, 2 * present.wait), 0
        return ratios

    def _among(self, trained: Mapping[str, Tensor]) -> _Present:
        """What is known of these parameters; apart from others, as networks that take turns are frozen in turn."""
        key, forms = (self._steps.generation, frozenset(trained)), {name: form(p) for name, p in trained.items()}
        present = self._present.get(key)
        if present is None or present.forms != forms:
            if len(self._present) >= _MOST_TURNS:
                self._present = {}
            groups = tuple(group for group in self._groups if _fits(group, trained))
            beside = frozen_beside(groups, self._module, trained)
            present = self._present[key] = _Present(forms, groups, beside)
        return present


def _bounded(update: Update, trained: Mapping[str, Tensor], present: _Present) -> dict[str, float]:
    """Upper bounds for the groups that the update touches, infinite where none is known."""
    touched = [group for group in present.groups if not update.after.keys().isdisjoint(group.parameter_names)]
    if not touched:
        return {}
    before = {**trained, **update.before}
    if present.bounds is None:
        # On the device: what follows looks at the snapshot's parameters at every update.
        resting, beside = (lambda device, n_bytes: device), present.beside
        present.bounds = Bounds(present.groups, before, resting=resting, beside=beside)
    present.bounds.forget_path()  # others may have moved parameters since
    found = present.bounds.of_step(before, trained)
    steps = {group.name: found[group.name].step for group in touched}
    return {name: math.inf if math.isnan(step) else step for name, step in steps.items()}


def _fits(group: NeuronGroup, trained: Mapping[str, Tensor]) -> bool:
    try:
        return group.dim(trained) > 0
    except ValueError:
        return False


def update_ratios(
    update: Update,
    groups: Sequence[NeuronGroup],
    trained: Mapping[str, Tensor],
    max_ratio: float,
    beside: Beside,
) -> dict[str, float]:
    """The critical ratio of an update for each group that it touches, the worst block's.

    A pair counts whose distance exceeds eps max(|x_i|, |x_j|) / max_ratio: rounding alone can move nearer ones. The
    ratio is infinite where the update is not finite, and 0 where nothing finite was there to protect. `beside` is what
    is frozen of neurons: it keeps them apart.
    """
    found: dict[str, float] = {}
    before = {**trained, **update.before}
    for group in groups:
        names = set(group.parameter_names)
        if names & update.after.keys():
            eps = max(torch.finfo(trained[name].dtype).eps for name in names if name in trained)
            frozen = beside.get(group.name, {})
            start, end = (group.gather({**tensors, **frozen}) for tensors in (before, trained))
            found[group.name] = _ratio(group, start, end, eps / max_ratio)
    return found


@torch.no_grad()
def take_part(update: Update, proposed: Mapping[str, Tensor], factor: float) -> None:
    """Take a fraction of an update: x = before + factor (proposed - before), rounded once."""
    for name, now in _each(update):
        wide = wide_dtype(now.device) if now.is_floating_point() else now.dtype
        now.copy_(torch.lerp(update.before[name].to(wide), proposed[name].to(wide), factor))


@torch.no_grad()
def drop(update: Update) -> None:
    """Take nothing of an update."""
    for name, now in _each(update):
        now.copy_(update.before[name])


def proposed_values(update: Update) -> dict[str, Tensor]:
    """Copies of the parameters as the optimizer has left them."""
    return {name: now.detach().clone() for name, now in _each(update)}


def _each(update: Update) -> list[tuple[str, Tensor]]:
    """Every parameter once, under its first name."""
    return list({id(now): (name, now) for name, now in reversed(list(update.after.items()))}.values())


def _ratio(group: NeuronGroup, before: Tensor, after: Tensor, resolution: float) -> float:
    if not torch.isfinite(before).all():
        return 0.0
    if not torch.isfinite(after).all():
        return math.inf
    pairs = zip(blocks(before, group), blocks(after, group), strict=True)
    return max(resolved_critical_ratio(x, y, resolution) for x, y in pairs)
