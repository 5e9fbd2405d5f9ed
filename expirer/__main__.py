"""Starts the program, `python -m expirer`: takes nothing for granted about its streams and its signals."""

import io
import os
import signal
import sys
from contextlib import suppress
from importlib import import_module
from types import FrameType

_SERVICES = (["run"], ["web"])
"""Commands that wait for a signal, and find one that came while their modules were loading."""


def main() -> int:
    """Run the command line; return its exit code."""
    _open_streams()
    stops = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
    stops = [number for number in stops if signal.getsignal(number) != signal.SIG_IGN]  # as nohup has it
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    cli = import_module("expirer.cli")  # a quarter of a second, in which no signal may be lost
    code: object
    try:
        if sys.argv[1:2] not in _SERVICES:
            for number in {signal.SIGTERM, signal.SIGHUP}.intersection(stops):
                signal.signal(number, _leave)  # without a handler the first process of a container gets no SIGTERM
            signal.pthread_sigmask(signal.SIG_UNBLOCK, stops)
        code = cli.main()
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BrokenPipeError:
        code = 128 + signal.SIGPIPE
    except OSError as error:  # a full disk under the output, or no file descriptor left
        code = _report(error)
    except SystemExit as ended:
        code = ended.code
    return _flush_streams(int(str(code or 0)))


def _open_streams() -> None:
    """Open each stream that was closed at the start, lest a socket gets its number; let each print every text."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _flush_streams(code: int) -> int:
    """Return the exit code, which is not 0 if the output could not be written."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # the interpreter flushes once more
            if stream is sys.stdout and isinstance(error, BrokenPipeError):
                code = code or 128 + signal.SIGPIPE
            elif stream is sys.stdout:
                code = code or _report(error)
    return code


def _report(error: OSError) -> int:
    with suppress(OSError):
        sys.stderr.write(f"expirer: {error.strerror or error}\n")
    return 1


def _leave(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)  # raised where the program is, so that it cleans up


if __name__ == "__main__":
    sys.exit(main())
