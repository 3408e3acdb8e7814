"""A run's record as one self-contained HTML page."""

from lightning_topo.outputs.page._advice import recommendation
from lightning_topo.outputs.page._output import PageOutput
from lightning_topo.outputs.page._page import render_page, write_report
from lightning_topo.outputs.page._verdict import verdict

__all__ = ["PageOutput", "recommendation", "render_page", "verdict", "write_report"]
