"""The events that the engine itself reports: what it could not see or restore."""

from collections.abc import Sequence
from typing import Any

from lightning_topo._parameter_coverage import UNUSED, ParameterCoverage
from lightning_topo._watch.membership import Change
from lightning_topo._watch.updates import Update
from lightning_topo.neurons import NeuronGroup
from lightning_topo.phases import EventName, Severity, TopologyEvent

_MOST_NAMED = 3


def lost_result(probe: str, reason: str, step: int, epoch: int) -> TopologyEvent:
    """The result of a capture at `step` will never come."""
    return TopologyEvent(
        EventName.GAP,
        step,
        epoch,
        severity=Severity.WARN,
        message=f"The result of {probe} at step {step} is lost: {reason}.",
        remedy="Later captures are measured. If this happens often, measure less often, or with fewer landmarks.",
    )


def not_measured(note: str, step: int, epoch: int) -> TopologyEvent:
    """A probe says why a value is missing."""
    return TopologyEvent(
        EventName.GAP,
        step,
        epoch,
        message=note,
        remedy="Nothing to do: everything else is measured. This is not reported again.",
    )


def left_open(step: int, reason: str, epoch: int) -> TopologyEvent:
    """The neurons were not known yet in the first step."""
    return TopologyEvent(
        EventName.GAP,
        step,
        epoch,
        message=f"Step {step:,} is open, since no neurons could be found on it: {reason}.",
        remedy="Nothing to do: the next step is looked at instead.",
    )


def stale_samples(samples: int, refused: int, reason: str, remedy: str, step: int, epoch: int) -> TopologyEvent:
    """The loss was evaluated on samples of an earlier step than wanted: a later one was refused."""
    return TopologyEvent(
        EventName.GAP,
        step,
        epoch,
        severity=Severity.WARN,
        value=float(samples),
        message=f"The loss is evaluated on samples of step {samples:,} and before: step {refused:,} cannot be replayed "
        f"({reason}). Sharpness is that of these samples, at the present parameters.",
        remedy=remedy,
    )


def renewed_samples(step: int, epoch: int) -> TopologyEvent:
    """A step could be replayed again."""
    return TopologyEvent(
        EventName.GAP,
        step,
        epoch,
        message="The loss is evaluated on samples of present steps again.",
        remedy="Nothing to do: a step could be replayed again.",
    )


def members_changed(
    change: Change,
    groups: Sequence[str],
    step: int,
    epoch: int,
    *,
    are_looked_for: bool = False,
    comes_back: bool = False,
) -> TopologyEvent:
    """Parameters have joined or left the training: the clouds of these groups have other coordinates from here on.

    A change that `comes_back`, as of networks that are frozen in turns, is not said any more.
    """
    what = [
        f"{some_of(sorted(names))} {verb}"
        for names, verb in (
            (change.joined, "joined the training"),
            (change.left, "left the training"),
            (change.changed, "changed shape or dtype"),
            (change.replaced, "was replaced" if len(change.replaced) == 1 else "were replaced"),
            (change.gone, "is not what it was" if len(change.gone) == 1 else "are not what they were"),
        )
        if names
    ]
    whose = f" The totals of {some_of(groups, 'groups')} count from here." if groups else ""
    whose += " So they did before: this is not said again." if comes_back else ""
    return TopologyEvent(
        EventName.GAP,
        step,
        epoch,
        value=float(len(change.names)),
        message=f"{'; '.join(what)}.{whose}",
        remedy="Nothing to do: neurons are looked for again on the next step; `lightning-topo neurons` lists them."
        if are_looked_for
        else "Nothing to do: those that are trained now and in a group of neurons are watched from now on.",
    )


def update_left(update: Update, step: int, epoch: int) -> TopologyEvent:
    """An update came after the last step, and belongs to none."""
    moved = some_of(sorted(update.after))
    return TopologyEvent(
        EventName.GAP,
        step,
        epoch,
        message=f"After the last step {type(update.optimizer).__name__} has moved {moved} once more. That update "
        "belongs to no step: its r is not known.",
        remedy="Step the optimizer within a step of the training, not behind the last one.",
    )


def missed_updates(step: int, epoch: int) -> TopologyEvent:
    """Neurons were found on a step with several updates: those before the last one were made before."""
    return TopologyEvent(
        EventName.GAP,
        step,
        epoch,
        message=f"Step {step:,} had several updates of the same neurons. Of those before the last r is not known: the "
        "step is open, its values are those of the last update, and totals count from there.",
        remedy="Nothing to do: later steps are measured with all their updates.",
    )


def step_failed(step: int, epoch: int, why: str, rank: int) -> TopologyEvent:
    """A step could not be measured on one process."""
    return TopologyEvent(
        EventName.PROBE_FAILED,
        step,
        epoch,
        severity=Severity.WARN,
        message=f"Step {step:,} could not be measured on process {rank}: {why}. It is open.",
        remedy="Everything else goes on. Please report this: it is no error of the training.",
    )


def not_alike(rank: int, names: Sequence[str], step: int, epoch: int) -> TopologyEvent:
    """Processes that should train the same model do not."""
    return TopologyEvent(
        EventName.GAP,
        step,
        epoch,
        severity=Severity.WARN,
        message=f"Process {rank} has other values of {some_of(names)} than process 0. r of a group is that of the "
        "process which measures it, and says nothing of the others: from here on steps are open.",
        remedy="Data parallelism keeps processes alike: look for updates, rates or data that only some of them see. If "
        "they are meant to differ, watch each by itself.",
    )


def left_alone(ranks: Sequence[int], first: int, step: int, epoch: int) -> TopologyEvent:
    """The training has ended here, and other processes have not said what they found since the last exchange."""
    return TopologyEvent(
        EventName.GAP,
        step,
        epoch,
        severity=Severity.WARN,
        message=f"Nothing came from process {some_of(ranks, 'processes')} at the end: of steps {first:,} to {step:,} "
        "only what the others have measured is known.",
        remedy="See whether it has failed. A process that ends by an exception leaves what it knows.",
    )


def parts_used(
    groups: Sequence[NeuronGroup], since: int, step: int, epoch: int, *, is_guarded: bool = False
) -> TopologyEvent:
    """Parts that the first step did not use are trained: these groups are new, or have more coordinates."""
    named = some_of([group.name for group in groups], "groups")
    earlier = f"step {since:,}" if since == step - 1 else f"steps {since:,} to {step - 1:,}"
    left = f" Where they moved before that, they are open, as they were not known: {earlier}." if since < step else ""
    held = f" Held below the critical point from step {step + 1:,} on, and not before." if is_guarded else ""
    return TopologyEvent(
        EventName.GAP,
        step,
        epoch,
        severity=Severity.WARN if is_guarded else Severity.INFO,
        value=float(len(groups)),
        message=f"The first step did not use all of {named}, later ones do. Watched from step {step:,} on.{left}{held}",
        remedy="Nothing to do: `lightning-topo neurons` lists all groups.",
    )


def lost_beginning(groups: Sequence[str], step: int, epoch: int) -> TopologyEvent:
    """The record no longer gives the clouds of the beginning."""
    return TopologyEvent(
        EventName.GAP,
        step,
        epoch,
        severity=Severity.WARN,
        value=float(len(groups)),
        message=f"The neurons of {some_of(groups, 'groups')} when training began can no longer be read from the "
        "record: their totals are not measured.",
        remedy="Leave reference/clouds.npz in the run folder as it is during training. All other measurements go on.",
    )


def moved_outside(
    optimizer: object, names: Sequence[str], step: int, epoch: int, *, is_lost: bool = False
) -> TopologyEvent:
    """Something other than the optimizer has changed its parameters between two updates.

    `is_lost` where it did so at once, so that the first of them could not be measured.
    """
    lost = f" It came before step {step:,} was measured: that step is open, later ones are not." if is_lost else ""
    return TopologyEvent(
        EventName.OUTSIDE_CHANGE,
        step,
        epoch,
        value=float(len(names)),
        message=f"Between two updates of {type(optimizer).__name__} something else has written to {some_of(names)}. "
        f"r measures the optimizer's own updates; this change is in the totals since training began.{lost}",
        remedy="Nothing to do if this is intended, as with a norm constraint, a re-initialised unit or weight "
        "averaging. Later changes of this optimizer's parameters are not reported again.",
    )


def unseen_step(optimizers: Sequence[object], names: Sequence[str], step: int, epoch: int) -> TopologyEvent:
    """Parameters have moved and no optimizer's update was seen."""
    who = ", ".join(dict.fromkeys(type(optimizer).__name__ for optimizer in optimizers)) or "an optimizer"
    return TopologyEvent(
        EventName.UNSEEN_STEP,
        step,
        epoch,
        severity=Severity.WARN,
        value=float(len(names)),
        message=f"{some_of(names)} moved, and no update by {who} was seen: something moves them that does not step "
        "through torch's Optimizer.step. Such steps are not measured, and nothing is claimed about them.",
        remedy="Step by `optimizer.step()` of a class that calls `torch.optim.Optimizer.__init__`. Updates that are "
        "made by hand, fused into the backward or replayed from a CUDA graph cannot be seen.",
    )


def unwatched(
    uncovered: Sequence[ParameterCoverage], n_entries: int, step: int, epoch: int, *, looks_again: bool = True
) -> TopologyEvent | None:
    """Trainable parameters that belong to no group, with the largest and their reasons; None where there are none.

    `uncovered` begins with the largest; `n_entries` is the size of all trainable parameters. `looks_again` where a step
    that uses others than the first is looked at.
    """
    if not uncovered:
        return None
    unused = [one for one in uncovered if one.reason == UNUSED]
    share = 100 * sum(one.numel for one in unused) / n_entries
    what = "looked for when they move" if looks_again else "unwatched"
    apart = f" The first step does not use {share:.3g} % of all entries: their neurons are {what}." if share else ""
    named = "; ".join(f"{one.param} ({one.reason})" for one in uncovered[:_MOST_NAMED])
    n = len(uncovered)
    of_all = f"{100 * sum(one.numel for one in uncovered) / n_entries:.3g} % of all entries"
    several = f"{n} trainable parameters, {of_all}, belong to no group of neurons. The largest"
    one_alone = f"One trainable parameter, {of_all}, belongs to no group of neurons. It is"
    return TopologyEvent(
        EventName.UNWATCHED_PARAMETERS,
        step,
        epoch,
        value=float(n),
        message=f"{several + ':' if n > 1 else one_alone} {named}.{apart}",
        remedy="Often nothing: inputs and outputs of a network have no exchangeable neurons. Otherwise name a group by "
        "hand: TopologyMonitor(groups=[..., *declare_neurons(module, ...)]).",
    )


def some_of(names: Sequence[Any], what: str = "parameters") -> str:
    """The first few names, and how many more there are of what."""
    some = ", ".join(map(str, names[:_MOST_NAMED]))
    return some if len(names) <= _MOST_NAMED else f"{some} and {len(names) - _MOST_NAMED} more {what}"
