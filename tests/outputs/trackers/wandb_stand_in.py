"""A stand-in for the part of W&B's server that saves a workspace, on 127.0.0.1."""

import gzip
import json
import re
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        self._answer({})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        request = json.loads(body)
        operation = re.search(r"(?:query|mutation)\s+(\w+)", request.get("query", ""))
        name = operation.group(1) if operation else ""
        variables = request.get("variables") or {}
        self.server.requests.append((name, variables))
        if name == "UpsertView2":
            view = {"id": "Vmlldzo0Mg==", "name": variables["name"]}
            self._answer({"data": {"upsertView": {"view": view, "inserted": True}}})
        elif name == "Viewer":
            viewer = {"id": "u1", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
            self._answer({"data": {"viewer": viewer}})
        else:
            self._answer({"data": {}})

    def _answer(self, answer):
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def wandb_stand_in():
    """A running server: its address, and the requests (name, variables) that it has got."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.requests = []
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
