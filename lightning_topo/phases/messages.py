"""What each event says, and what it advises."""

import math

from lightning_topo.measurement import Measurement
from lightning_topo.phases.event import EventName, Severity, TopologyEvent
from lightning_topo.phases.rules import Band, PhaseRules


def curvature(measurement: Measurement, exceeded: bool, value: float, band: Band) -> TopologyEvent:
    """eta * K crossed 1, as estimated from the curvature on the probe batch."""
    if exceeded:
        return TopologyEvent(
            EventName.CURVATURE_BOUND_EXCEEDED,
            measurement.step,
            measurement.epoch,
            severity=Severity.INFO,
            value=value,
            threshold=band.enter,
            message=f"eta * lambda = {value:.3g} has passed 1: the curvature no longer guarantees that neurons "
            "stay apart, only the measured critical ratio does.",
            remedy="Nothing is broken yet. To stay below the critical point, lower the learning rate by "
            f"{_factor(value)} or more.",
        )
    return TopologyEvent(
        EventName.CURVATURE_BOUND_RESTORED,
        measurement.step,
        measurement.epoch,
        value=value,
        threshold=band.leave,
        message=f"eta * lambda has fallen to {value:.3g}: the paper's sufficient condition can hold again.",
        remedy="Nothing to do.",
    )


def edge(measurement: Measurement, entered: bool, value: float, band: Band) -> TopologyEvent:
    """The sharpness reached, or left, the optimizer's stability threshold."""
    if entered:
        return TopologyEvent(
            EventName.EDGE_OF_STABILITY_ENTER,
            measurement.step,
            measurement.epoch,
            severity=Severity.WARN,
            value=value,
            threshold=band.enter,
            message=f"Training is at the edge of stability: the sharpness is {value:.3g} times the threshold "
            "of this optimizer and learning rate.",
            remedy="Often harmless: the loss goes on falling, unevenly. If it does not, lower the learning rate.",
        )
    return TopologyEvent(
        EventName.EDGE_OF_STABILITY_EXIT,
        measurement.step,
        measurement.epoch,
        value=value,
        threshold=band.leave,
        message=f"Training has left the edge of stability: the sharpness is {value:.3g} times its threshold.",
        remedy="Nothing to do.",
    )


def breakdown(measurement: Measurement, ratio: float, rules: PhaseRules) -> TopologyEvent:
    """A step moved two neurons by as much as they were apart."""
    pair = ""
    if {"critical_i", "critical_j"} <= measurement.values.keys():
        i, j = (int(measurement.values[name]) for name in ("critical_i", "critical_j"))
        pair = f" by its neurons {i} and {j}"
    return TopologyEvent(
        EventName.TOPOLOGY_BREAKDOWN,
        measurement.step,
        measurement.epoch,
        group=measurement.group,
        severity=Severity.ERROR,
        value=ratio,
        threshold=rules.critical_ratio,
        message=f"The step was {ratio:.3g} times the critical one in {measurement.group}, attained{pair}: "
        "neurons may have torn apart or merged.",
        remedy=f"Lower the learning rate by {_factor(ratio)} or more; in the first steps, warm it up instead.",
    )


def restored(measurement: Measurement, since: int, peak: float, peak_step: int, rules: PhaseRules) -> TopologyEvent:
    """A breakdown is over: no step was critical for as long as the rules ask."""
    return TopologyEvent(
        EventName.TOPOLOGY_RESTORED,
        measurement.step,
        measurement.epoch,
        group=measurement.group,
        value=peak,
        threshold=rules.critical_ratio,
        message=f"The last {rules.hold_steps} measured steps of {measurement.group} were below the critical one. "
        f"The breakdown began at step {since} and was worst at step {peak_step}, at {peak:.3g} times.",
        remedy="Nothing to do now; what merged or tore in between stays so.",
    )


def instability(measurement: Measurement, loss: float | None, ratio: float | None, rules: PhaseRules) -> TopologyEvent:
    """The loss is no longer finite, or rises far beyond the edge of stability."""
    broken = loss is not None and not math.isfinite(loss)
    return TopologyEvent(
        EventName.INSTABILITY,
        measurement.step,
        measurement.epoch,
        severity=Severity.ERROR,
        value=loss if broken else ratio,
        threshold=None if broken else rules.instability_ratio,
        message=f"The loss is {loss}: training has diverged."
        if broken
        else f"The loss rises, and the sharpness is {ratio:.3g} times what this optimizer and learning rate can bear.",
        remedy="Go back to a checkpoint before this step and lower the learning rate, or warm it up; clip gradients."
        if broken
        else f"Lower the learning rate by {_factor(ratio or 2.0)} or more, unless the loss comes down again by itself.",
    )


def merged(measurement: Measurement, count: float, before: float | None) -> TopologyEvent:
    """Neurons that were apart have become equal up to rounding."""
    fewer = "" if before is None else f", {before:.0f} before"
    return TopologyEvent(
        EventName.NEURONS_MERGED,
        measurement.step,
        measurement.epoch,
        group=measurement.group,
        severity=Severity.WARN,
        value=count,
        threshold=before,
        message=f"Neurons of {measurement.group} have become equal: {count:.0f} distinct ones are left{fewer}.",
        remedy="Equal neurons stay equal under most optimizers, and their capacity is lost. Lower the learning rate or "
        "the weight decay, or perturb them, if it is needed.",
    )


def betti(measurement: Measurement, k: str, count: float, before: float) -> TopologyEvent:
    """A Betti number at the fixed fraction of the diameter is another one, and has stayed so."""
    what = {"0": "clusters", "1": "loops"}.get(k, f"holes of dimension {k}")
    return TopologyEvent(
        EventName.BETTI_CHANGED,
        measurement.step,
        measurement.epoch,
        group=measurement.group,
        value=count,
        threshold=before,
        message=f"At the fixed fraction of its diameter {measurement.group} has {count:.0f} {what} (b{k}), not "
        f"{before:.0f} any more.",
        remedy="Nothing is wrong by itself: Betti numbers at a scale are not protected. Read it beside the total "
        "contraction and expansion, which tell stretching from merging.",
    )


def jump(measurement: Measurement, k: str, distance: float, bound: float | None, rules: PhaseRules) -> TopologyEvent:
    """A persistence diagram moved far between two captures."""
    if bound is None:
        explained = "No bound is known beside it: the diagram was subsampled."
    else:
        explained = f"The distortion in between allows up to {bound:.3g}."
    return TopologyEvent(
        EventName.DIAGRAM_JUMP,
        measurement.step,
        measurement.epoch,
        group=measurement.group,
        severity=Severity.WARN,
        value=distance,
        threshold=rules.diagram_jump,
        message=f"The persistence diagram of {measurement.group} in dimension {k} moved by {distance:.3g} in log scale "
        f"since the previous capture, a factor of {_power(distance)}. {explained}",
        remedy="If this is not the beginning of training, look at the critical ratio of the steps in between; "
        "Persistence(every_n_steps=...) captures more often.",
    )


def split(measurement: Measurement, count: float) -> TopologyEvent:
    """Neurons that were the same in every respect have parted."""
    return TopologyEvent(
        EventName.EQUIVARIANCE_BROKEN,
        measurement.step,
        measurement.epoch,
        group=measurement.group,
        severity=Severity.WARN,
        value=count,
        threshold=0.0,
        message=f"{count:.0f} neurons of {measurement.group} that were equal in parameters and optimizer state have "
        "parted: the rule of learning treats the neurons of this group differently.",
        remedy="Expected with dropout, noise or parameters frozen one by one. Otherwise look for what tells the "
        "neurons apart: a mask, an index, a per-neuron learning rate.",
    )


def _power(distance: float) -> str:
    return f"{math.exp(distance):.3g}" if distance < 700.0 else "infinity"


def _factor(ratio: float) -> str:
    return f"a factor of {max(ratio, 1.01):.3g}" if ratio < float("inf") else "a factor of 10"
