"""Doctests in docstrings are shown as code: in Markdown `>>>` alone would be a quotation."""

import re
from typing import Any

from griffe import Extension, Object

_DOCTEST = re.compile(r"^>>> .*(?:\n(?!\s*$).*)*", flags=re.MULTILINE)


class Doctests(Extension):
    """Puts fences around them."""

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        """Of one object, when it has been read."""
        if obj.docstring is not None:
            obj.docstring.value = _DOCTEST.sub(lambda found: f"```pycon\n{found[0]}\n```", obj.docstring.value)
