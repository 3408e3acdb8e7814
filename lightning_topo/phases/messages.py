"""What each event says, and what it advises."""

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


def _factor(ratio: float) -> str:
    return f"a factor of {max(ratio, 1.01):.3g}" if ratio < float("inf") else "a factor of 10"
