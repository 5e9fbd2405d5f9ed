"""A web server that has nothing to do with expirer: what a flood costs whoever shares the machine with it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIEnvironment

from waitress import serve


def _answer(_environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"x" * 8000]


if __name__ == "__main__":
    os.nice(10)
    serve(_answer, host="127.0.0.1", port=int(sys.argv[1]), threads=6, asyncore_use_poll=True, connection_limit=500)
