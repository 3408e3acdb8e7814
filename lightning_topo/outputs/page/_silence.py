"""Why a probe has no values: what a chart says in its place."""

from collections.abc import Mapping, Sequence, Set
from typing import Any

from lightning_topo.phases import EventName, TopologyEvent

SHOWN = ("distortion", "persistence", "sharpness", "fate")
"""Probes with a chart of their own."""


def silence(about: Mapping[str, Any], events: Sequence[TopologyEvent], measured: Set[str]) -> dict[str, str]:
    """For each probe that has a chart, why it may have measured nothing, from `run.json` and the events.

    >>> silence({"settings": {"probes": {"fate": {"class": "Fate", "every_n_steps": 5}}}}, (), frozenset())["fate"]
    'The Fate probe has not measured yet: it measures when its period ends (every 5 steps).'
    """
    settings = about.get("settings")
    settings = settings if isinstance(settings, dict) else {}
    probes, share = settings.get("probes"), settings.get("max_overhead")
    probes = probes if isinstance(probes, dict) else None
    failed = [event.message for event in events if event.name is EventName.PROBE_FAILED]
    return {name: _partly(name) if name in measured else _reason(name, probes, share, failed) for name in SHOWN}


def _partly(name: str) -> str:
    if name == "sharpness":
        return "The Sharpness probe knows no threshold for this optimizer: StepEdge and the curvature tell of the edge."
    return f"The {name.capitalize()} probe has measured, but not this."


def _reason(name: str, probes: Mapping[str, Any] | None, share: object, failed: Sequence[str]) -> str:
    kind = name.capitalize()
    if any(message.startswith(f"{name} ") for message in failed):
        return f"The {kind} probe could not measure: the event probe_failed says why."
    if probes is None:
        return f"The {kind} probe is off, or has not measured yet."
    if not isinstance(own := probes.get(name), dict):
        return f"The {kind} probe is off: probes=[..., {kind}()] switches it on."
    period = own.get("every_n_steps")
    if not isinstance(period, int) and "auto" in (period, own.get("every_n_epochs")):
        allowed = f"{share:.0%} of the training's time" if isinstance(share, int | float) else "a share of the time"
        return (
            f"The {kind} probe has not measured yet. It may take {allowed} (max_overhead), and waits until that is "
            f"enough for a measurement; {kind}(every_n_steps=20) measures every 20 steps, whatever it costs."
        )
    every = f" (every {period} steps)" if isinstance(period, int) else ""
    return f"The {kind} probe has not measured yet: it measures when its period ends{every}."
