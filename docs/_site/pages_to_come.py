"""Pages that the navigation names before they are written are left out of it, and links to them are plain text.

A page that is written and missing from the navigation is still an error of the strict build.
"""

import re
from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    """Drop what is not there from the navigation."""
    config.extra["to_come"] = set()
    config.nav = _written(config.nav, Path(config.docs_dir), config.extra["to_come"])
    return config


def on_page_markdown(markdown: str, config: Any, **_: Any) -> str:
    """Unlink what is not there."""
    for page in config.extra["to_come"]:
        markdown = re.sub(rf"\[([^\]]+)\]\({re.escape(page)}(#[^)]*)?\)", r"\1", markdown)
    return markdown


def _written(nav: Any, docs: Path, to_come: set[str]) -> Any:
    if isinstance(nav, list):
        return [kept for item in nav if (kept := _written(item, docs, to_come))]
    if isinstance(nav, dict):
        return {title: kept for title, item in nav.items() if (kept := _written(item, docs, to_come))}
    if (docs / nav).is_file():
        return nav
    to_come.add(nav)
    return None
