"""Texts without the machine that they were made on: no absolute paths, no names of users or hosts, no passwords."""

import getpass
import os
import re
import socket
from dataclasses import replace
from functools import lru_cache

from lightning_topo.phases import TopologyEvent

_GONE = "\u2026"
_REST = r"""[^\s'"`<>|:,;()\[\]{}]+"""
_QUOTED = re.compile(
    r"""(?P<quote>['"`])(?P<path>(?:(?:file://)?/|~[\w.-]*/|[A-Za-z]:[/\\]|\\\\)[^'"`\n]+)(?P=quote)"""
)
_PATH = re.compile(
    rf"""(?:file://|(?<![\w./<\\{_GONE}])(?:~[\w.-]*)?)(?!//)/(?=[\w.@+-]){_REST}"""
    rf"""|(?<!\w)[A-Za-z]:\\{_REST}|(?<![\w\\])\\\\[\w.-]+\\{_REST}"""
)
_PASSWORD = re.compile(r"://[^\s/@]+@")
_FILE = re.compile(r"[\w-]+\.\w{1,8}")
_ANYBODY = frozenset({"root", "user", "users", "admin", "nobody", "ubuntu", "runner", "localhost", "home"})
_SHORTEST_NAME = 3


def impersonal(text: str) -> str:
    """A text in which paths, user and host names are left out; of a path the name of the file stays.

    >>> impersonal("[Errno 28] No space left on device: '/scratch/someone/run 1/events.jsonl'")
    "[Errno 28] No space left on device: '…/events.jsonl'"
    >>> impersonal("r / eta of net/0 at https://me:token@example.org/x, from C:\\\\Users\\\\me and ~/data")
    'r / eta of net/0 at https://…@example.org/x, from … and …'
    """
    text = _PASSWORD.sub(f"://{_GONE}@", text)
    text = _QUOTED.sub(lambda found: f"{found['quote']}{_file_name(found['path'])}{found['quote']}", text)
    text = _PATH.sub(lambda found: _file_name(found[0]), text)
    home = os.path.expanduser("~")
    if len(home) > 1:
        text = text.replace(home, _GONE)
    names = _names()
    return text if names is None else names.sub(_GONE, text)


def impersonal_event(event: TopologyEvent) -> TopologyEvent:
    """An event as others may see it: an error's words, which it may quote, tell of the machine."""
    return replace(event, message=impersonal(event.message), remedy=impersonal(event.remedy))


def is_name_of_someone(word: str) -> bool:
    """Whether a word is the name of this machine or of its user."""
    names = _names()
    return names is not None and names.fullmatch(word) is not None


def _file_name(path: str) -> str:
    last = re.split(r"[/\\]", path.rstrip("/\\."))[-1]
    return f"{_GONE}/{last}" if _FILE.fullmatch(last) else _GONE


@lru_cache(maxsize=1)
def _names() -> re.Pattern[str] | None:
    """What matches the names of user and machine; None where nothing tells of anybody."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user may have no name
        user = ""
    host = socket.gethostname()
    telling = {
        name.lower()
        for name in (user, host, host.partition(".")[0])
        if len(name) >= _SHORTEST_NAME and name.lower() not in _ANYBODY
    }
    if not telling:
        return None
    longest_first = sorted(telling, key=len, reverse=True)
    return re.compile(rf"(?<![\w.])(?:{'|'.join(map(re.escape, longest_first))})(?!\w)", re.IGNORECASE)
