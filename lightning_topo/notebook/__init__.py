"""A record as a notebook wants it: tidy pandas frames, and figures of matplotlib.

Both are the extra `notebook`, and imported only when they are used.
"""

from lightning_topo.notebook.views import RecordViews

__all__ = ["RecordViews"]
