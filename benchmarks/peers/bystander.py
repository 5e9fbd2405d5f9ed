"""A web server that has nothing to do with expirer: what a flood of it costs a worker on the same machine."""

from __future__ import annotations

import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "8000")
        self.end_headers()
        self.wfile.write(b"x" * 8000)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    os.nice(10)
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), _Handler).serve_forever()
