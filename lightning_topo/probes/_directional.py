"""How far the step just taken overshot, as a probe reports it."""

from lightning_topo.probes._probe import Capture
from lightning_topo.stability import Curvature, directional_ratio


def directional_values(curvature: Curvature, capture: Capture) -> dict[str, float]:
    """The directional ratio of the step that led here; empty where there was none, or one that went uphill."""
    before = capture.parameters_before
    if before is None:
        return {}
    now = {name: p.detach() for name, p in capture.module.named_parameters() if p.requires_grad}
    if now.keys() != before.keys():
        return {}
    step = curvature.layout.flatten(p - before[name] for name, p in now.items())
    ratio = directional_ratio(curvature, step)
    return {} if ratio is None else {"directional_ratio": ratio}
