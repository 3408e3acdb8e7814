"""A run's record as one self-contained HTML page."""

from lightning_topo.outputs.page.advice import recommendation
from lightning_topo.outputs.page.output import PageOutput
from lightning_topo.outputs.page.page import render_page, write_report
from lightning_topo.outputs.page.verdict import verdict

__all__ = ["PageOutput", "recommendation", "render_page", "verdict", "write_report"]
