"""Which parameters are in no group of neurons, as a small table of the page."""

from html import escape

from lightning_topo.outputs.page._encode import visible
from lightning_topo.outputs.record._parameters import ParameterTable

MOST_ROWS = 12
"""Of the parameters in no group so many are shown, the largest."""


def parameter_section(table: ParameterTable | None) -> str:
    """How many parameters are in groups, and the largest of the others with the reason; nothing for older records."""
    if table is None or not table.parameters:
        return ""
    total, left = sum(p.numel for p in table.parameters), table.uncovered
    inside = total - sum(p.numel for p in left)
    lead = (
        f"{len(table.parameters) - len(left):,} of {len(table.parameters):,} parameters, with {inside:,} of {total:,} "
        "entries, are in groups of neurons."
    )
    rows = "".join(
        f'<tr><th scope="row" class="name">{_text(p.param)}</th><td>{p.numel:,}</td><td>{_text(p.reason)}</td></tr>'
        for p in left[:MOST_ROWS]
    )
    more = f" {len(left) - MOST_ROWS:,} more are in parameters.json." if len(left) > MOST_ROWS else ""
    body = (
        '<div class="scroll" tabindex="0" role="region" aria-label="Parameters in no group"><table class="parameters">'
        '<thead><tr><th scope="col">In no group</th><th scope="col">Entries</th><th scope="col">Why</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
        if rows
        else ""
    )
    return f"<h3>Parameters</h3><p>{lead}{more}</p>{body}"


def _text(words: str) -> str:
    return escape(visible(words))
