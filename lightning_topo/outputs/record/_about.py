"""`run.json` read back: what a run is, with nothing in it trusted."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ABOUT = "run.json"
_MOST_BYTES = 1 << 20


def read_about(folder: Path) -> Mapping[str, Any]:
    """The settings and circumstances of a run, by name; empty where they are missing or cannot be read."""
    path = folder / ABOUT
    try:
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
            return {}
        found = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
