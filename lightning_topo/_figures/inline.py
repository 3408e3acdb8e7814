"""A figure that a notebook shows. The one module that imports matplotlib when it is itself imported."""

import io

from matplotlib.figure import Figure


class InlineFigure(Figure):
    """A figure whose picture Jupyter shows below a cell, also where nobody has imported pyplot."""

    def _repr_png_(self) -> bytes:
        picture = io.BytesIO()
        self.savefig(picture, format="png")
        return picture.getvalue()
