"""A record as a notebook wants it: tidy pandas frames, and figures of matplotlib.

Both are imported only when they are used; pandas is the extra `notebook`.
"""

from lightning_topo.notebook.views import RecordViews

__all__ = ["RecordViews"]
