"""The message and the remedy of each event."""

import math

from lightning_topo.measurement import Measurement
from lightning_topo.phases._climb import Ground
from lightning_topo.phases._edge import EdgeChange, EdgeSource
from lightning_topo.phases._event import EventName, Severity, TopologyEvent
from lightning_topo.phases._instability import Divergence
from lightning_topo.phases._rules import Band, PhaseRules


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
            message=f"eta * lambda has passed 1, with {value:.3g} {_median(band.enter_window)}: the curvature no "
            "longer guarantees that neurons stay apart, only the measured critical ratio does.",
            remedy="No reason to act by itself: the estimate is usually far above r. The report says which learning "
            "rate keeps it below 1.",
        )
    return TopologyEvent(
        EventName.CURVATURE_BOUND_RESTORED,
        measurement.step,
        measurement.epoch,
        value=value,
        threshold=band.leave,
        message=f"eta * lambda has fallen to {value:.3g} {_median(band.leave_window)}: the paper's sufficient "
        "condition can hold again.",
        remedy="Nothing to do.",
    )


def _median(window: int) -> str:
    return "as measured" if window == 1 else f"as the median of the last {window} values"


_AT_EDGE = {
    EdgeSource.SHARPNESS: "the sharpness is {:.3g} times the threshold of this optimizer and learning rate",
    EdgeSource.BATCH: "the curvature of the training's own batches, along their gradients, is {:.3g} times the value "
    "at which this optimizer and learning rate settle",
    EdgeSource.DIRECTIONAL: "a step is {:.3g} times as long as the one in its direction that leaves the loss unchanged",
    EdgeSource.CRITICAL: "a step is {:.3g} times as long as the longest in its direction that lowers the loss",
}


def edge(measurement: Measurement, change: EdgeChange, band: Band) -> TopologyEvent:
    """The edge ratio reached 1, or left it, as one source sees it."""
    ground = _AT_EDGE[change.source].format(change.level)
    if change.entered:
        return TopologyEvent(
            EventName.EDGE_OF_STABILITY_ENTER,
            measurement.step,
            measurement.epoch,
            severity=Severity.WARN,
            value=change.level,
            threshold=band.enter,
            message=f"Training is at the edge of stability: {ground}, {_median(band.enter_window)} (source: "
            f"{change.source}).",
            remedy="Often harmless: the loss goes on falling, unevenly. If it does not, lower the learning rate.",
        )
    return TopologyEvent(
        EventName.EDGE_OF_STABILITY_EXIT,
        measurement.step,
        measurement.epoch,
        value=change.level,
        threshold=band.leave,
        message=f"Training has left the edge of stability: {ground}, {_median(band.leave_window)} (source: "
        f"{change.source}).",
        remedy="Nothing to do.",
    )


def breakdown(measurement: Measurement, ratio: float, rules: PhaseRules) -> TopologyEvent:
    """A step moved two neurons by as much as they were apart."""
    pair = ""
    if {"critical_i", "critical_j"} <= measurement.values.keys():
        i, j = (int(measurement.values[name]) for name in ("critical_i", "critical_j"))
        pair = f", attained by its neurons {i} and {j}"
    return TopologyEvent(
        EventName.TOPOLOGY_BREAKDOWN,
        measurement.step,
        measurement.epoch,
        group=measurement.group,
        severity=Severity.ERROR,
        value=ratio,
        threshold=rules.critical_ratio,
        message=f"The step was {ratio:.3g} times the critical one in {measurement.group}{pair}: "
        "neurons may have torn apart or merged.",
        remedy="Lower the learning rate, or warm it up if only the first steps are critical. The report recommends a "
        "value, from all steps of the run.",
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
        message=f"In the last {rules.hold_steps} steps of {measurement.group} r was below 1, measured or bounded. The "
        f"breakdown began at step {since} and was worst at step {peak_step}, at {peak:.3g} times.",
        remedy="Look at the loss: r below 1 does not mean that it has recovered. A merge in between is permanent.",
    )


def instability(measurement: Measurement, found: Divergence, rules: PhaseRules) -> TopologyEvent:
    """The loss is no longer finite, explodes, or rises far beyond the edge of stability."""
    go_back = "go back to a checkpoint before this step and lower the learning rate, or warm it up; clip gradients."
    value, threshold, remedy = found.loss, found.level, f"G{go_back[1:]}"
    if found.ratio is not None:
        value, threshold = found.ratio, rules.instability_ratio
        high = "rises beyond its own noise"
        if found.level is not None:
            high = f"stays above {found.level:.3g}, far above where it stood before"
        message = (
            f"The loss {high}, and the edge ratio is {found.ratio:.3g}: too much for this optimizer and learning rate."
        )
        remedy = "Lower the learning rate, unless the loss comes down by itself. The report recommends a value."
    elif found.level is not None:
        above = f"the last {rules.loss_window} losses are all above {found.level:.3g}"
        message = {
            Ground.LARGE_STEPS: f"The loss jumps after steps that were too large: {above}, more than noise explains.",
            Ground.EDGE: f"The loss grows at the edge of stability: {above}, and it has risen about threefold "
            f"{rules.edge_rises} times without slowing down.",
            Ground.SPEED: f"The loss explodes: {above}, and it has risen about threefold {rules.loss_rises} times in a "
            f"row, each time within {rules.loss_memory} losses.",
        }[found.ground or Ground.SPEED]
    else:
        message = f"The loss is {found.loss}."
        remedy = f"If the next losses are finite again, look at this batch. Otherwise training has diverged: {go_back}"
    return TopologyEvent(
        EventName.INSTABILITY,
        measurement.step,
        measurement.epoch,
        severity=Severity.ERROR,
        value=value,
        threshold=threshold,
        message=message,
        remedy=remedy,
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
        remedy="Equal neurons stay equal under most optimizers, and their capacity is lost. If it is needed, lower the "
        "learning rate or the weight decay, or perturb the neurons.",
    )


def vanishing(measurement: Measurement, count: float, before: float) -> TopologyEvent:
    """More neurons than before are near 0."""
    return TopologyEvent(
        EventName.NEURONS_VANISHING,
        measurement.step,
        measurement.epoch,
        group=measurement.group,
        severity=Severity.WARN,
        value=count,
        threshold=before,
        message=f"Neurons of {measurement.group} are vanishing: {count:.0f}{_of_all(measurement)} are far smaller than "
        f"the largest, {before:.0f} before.",
        remedy="Neurons near 0 contribute little. Lower the learning rate or the weight decay, re-initialise those "
        "neurons, or prune them.",
    )


def condensing(measurement: Measurement, count: float, before: float) -> TopologyEvent:
    """The neurons point in fewer directions than before."""
    return TopologyEvent(
        EventName.NEURONS_CONDENSING,
        measurement.step,
        measurement.epoch,
        group=measurement.group,
        severity=Severity.INFO,
        value=count,
        threshold=before,
        message=f"The neurons of {measurement.group} are condensing: they point in {count:.0f} directions, "
        f"{before:.0f} before.",
        remedy="Usual after a small initialisation. If the capacity is needed, initialise larger or lower the learning "
        "rate; else a narrower layer would do.",
    )


def betti(measurement: Measurement, k: str, count: float, before: float) -> TopologyEvent:
    """A Betti number at the fixed fraction of the diameter has changed for good."""
    what = {"0": "clusters", "1": "loops"}.get(k, f"holes of dimension {k}")
    return TopologyEvent(
        EventName.BETTI_CHANGED,
        measurement.step,
        measurement.epoch,
        group=measurement.group,
        value=count,
        threshold=before,
        message=f"At the fixed fraction of its diameter {measurement.group} has {count:.0f} {what} (b{k}), no longer "
        f"{before:.0f}.{_of_landmarks(measurement, k)}",
        remedy="Nothing is wrong by itself: Betti numbers at a scale are not protected. Compare the total contraction "
        "and expansion, which distinguish stretching from merging.",
    )


def jump(measurement: Measurement, k: str, distance: float, bound: float | None, rules: PhaseRules) -> TopologyEvent:
    """A persistence diagram moved far between two captures."""
    if bound is None:
        explained = "There is no bound to compare with: loops were computed from landmarks." + _of_landmarks(
            measurement, k
        )
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


def _of_landmarks(measurement: Measurement, k: str) -> str:
    """The error of a diagram in dimension k that was computed from landmarks."""
    error = measurement.values.get("landmark_error")
    if error is None or k == "0":
        return ""
    nothing = ": too large to conclude anything" if measurement.values.get(f"vacuous_{k}") else ""
    return f" They are computed from landmarks, with an error of up to {error:.2g} of the diameter{nothing}."


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
        "parted: the learning rule treats the neurons of this group differently.",
        remedy="Expected with dropout, noise or parameters frozen one by one. Otherwise look for what distinguishes "
        "the neurons: a mask, an index, a per-neuron learning rate.",
    )


def _of_all(measurement: Measurement) -> str:
    n = measurement.values.get("measured_neurons")
    return "" if n is None else f" of {n:.0f}"


def _power(distance: float) -> str:
    return f"{math.exp(distance):.3g}" if distance < 700.0 else "infinity"
