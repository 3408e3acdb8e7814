"""A run's page, served on this machine alone while the run goes on."""

import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock

from lightning_topo.outputs.page._output import record_bytes
from lightning_topo.outputs.page._page import render_page
from lightning_topo.outputs.record import read_record

_REST = 9.0
"""After rendering a page for t seconds it is shown for at least so many times t."""


class PageSource:
    """Renders a run's page anew where its record has grown, as seldom as that is dear."""

    def __init__(self, dirpath: Path) -> None:
        self._dirpath, self._lock = dirpath, Lock()
        self._size, self._page, self._not_before = -1, b"", 0.0

    def page(self) -> bytes:
        """The page as of now, or of a moment ago."""
        with self._lock:
            size, now = record_bytes(self._dirpath), time.monotonic()
            if not self._page or (size != self._size and now >= self._not_before):
                self._page, self._size = render_page([read_record(self._dirpath)]).encode(), size
                self._not_before = time.monotonic() + _REST * (time.monotonic() - now)
            return self._page


def page_server(dirpath: Path, port: int = 0, every: float = 10.0) -> ThreadingHTTPServer:
    """A server of the page on 127.0.0.1, which browsers load again after `every` seconds; not yet serving.

    Raises `FileNotFoundError` where there is no record, `ValueError` for a period below a second.
    """
    if every < 1.0:
        raise ValueError(f"expected --every of at least 1 second, got {every}")
    read_record(dirpath)
    source = PageSource(dirpath)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # A stranger's page that has a name of its own lead here is not told anything.
            host = (self.headers.get("Host") or "").partition(":")[0]
            if self.path != "/" or host not in ("127.0.0.1", "localhost"):
                self.send_error(404)
                return
            page = source.page()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(page)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("Refresh", f"{every:g}")
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, format: str, *args: object) -> None:
            """Requests are not logged."""

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)
