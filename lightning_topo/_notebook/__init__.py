"""Views of a record for notebooks: tidy pandas frames and matplotlib figures.

Both are imported only when they are used; pandas is the extra `notebook`.
"""

from lightning_topo._notebook.views import RecordViews

__all__ = ["RecordViews"]
