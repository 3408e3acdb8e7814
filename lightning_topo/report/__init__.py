"""A run's record as one self-contained HTML page."""

from lightning_topo.report.page import render_page, write_report
from lightning_topo.report.verdict import verdict

__all__ = ["render_page", "verdict", "write_report"]
