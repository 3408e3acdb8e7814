"""A run inside a notebook: the verdict, what to do next, and a few figures, as HTML that needs no script."""

import base64
from collections.abc import Callable
from html import escape
from io import BytesIO
from typing import Any

from lightning_topo.outputs.page._advice import advise
from lightning_topo.outputs.page._encode import visible
from lightning_topo.outputs.page._evidence import Evidence
from lightning_topo.outputs.page._outcome import history
from lightning_topo.outputs.page._verdict import sentence
from lightning_topo.outputs.record import RunRecord


def inline_html(record: RunRecord) -> str:
    """The run as a notebook shows it; a figure that cannot be drawn is left out."""
    outcome = history(record).outcome
    advice = advise(outcome, Evidence.of_record(record))
    parts = [f"<p><b>{_text(sentence(outcome))}</b></p>"]
    if advice is not None:
        reasons = "".join(f"<li>{_text(reason)}</li>" for reason in advice.reasons)
        parts.append(f"<p>Next: {_text(advice.decision)}</p><ul>{reasons}</ul>")
    plots = (record.plot_phases, record.plot_learning_rate, record.plot_critical_ratio, record.plot_stability)
    return "<div>" + "".join((*parts, *map(_picture, plots))) + "</div>"


def _picture(plot: Callable[[], Any]) -> str:
    try:
        buffer = BytesIO()
        plot().savefig(buffer, format="png", dpi=80)
    except (ValueError, ImportError):  # not measured, or no matplotlib
        return ""
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<img alt="{_text(plot.__name__.replace("plot_", "").replace("_", " "))}" src="data:image/png;base64,{data}">'
    )


def _text(words: str) -> str:
    return escape(visible(words))
