"""What the events say that no measurement makes: what the watching itself has met."""

from lightning_topo.measurement import GLOBAL
from lightning_topo.phases.event import EventName, Severity, TopologyEvent


def unseen_step(step: int, epoch: int, group: str = GLOBAL, *, steps: int = 1) -> TopologyEvent:
    """The weights moved, and no watched optimizer stepped.

    >>> unseen_step(7, 0).severity
    <Severity.WARN: 'warn'>
    """
    return TopologyEvent(
        EventName.UNSEEN_STEP,
        step,
        epoch,
        group=group,
        severity=Severity.WARN,
        value=float(steps),
        message=f"The weights of {group or 'the network'} moved, and no watched optimizer stepped: nothing is known of "
        "what happened in between.",
        remedy="Let an optimizer with ordinary hooks make the steps: one that is fused into the backward pass, "
        "captured in a CUDA graph, or whose step() is replaced on the instance cannot be followed.",
    )


def outside_change(step: int, epoch: int, group: str = GLOBAL) -> TopologyEvent:
    """Something other than an optimizer's step changed the weights between two steps."""
    return TopologyEvent(
        EventName.OUTSIDE_CHANGE,
        step,
        epoch,
        group=group,
        severity=Severity.INFO,
        message=f"The weights of {group or 'the network'} before this step are not those behind the last one: "
        "something other than the optimizer changed them.",
        remedy="Expected where weights are averaged, clamped, pruned, reset or loaded. The change is not measured.",
    )


def unwatched_parameters(step: int, epoch: int, names: tuple[str, ...]) -> TopologyEvent:
    """Parameters train that belong to no watched group."""
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return TopologyEvent(
        EventName.UNWATCHED_PARAMETERS,
        step,
        epoch,
        severity=Severity.WARN,
        value=float(len(names)),
        message=f"{len(names)} trained parameters belong to no watched group of neurons: {shown}.",
        remedy="Name their neurons with declare_neurons, or take it that nothing is claimed of them.",
    )


def rewind(step: int, epoch: int, last: int) -> TopologyEvent:
    """Training went back to an earlier step; what was written of the later ones is abandoned."""
    return TopologyEvent(
        EventName.REWIND,
        step,
        epoch,
        value=float(last),
        message=f"Training went back from step {last} to step {step}: what was recorded of the steps between is kept, "
        "but not counted.",
        remedy="Nothing to do.",
    )
