"""Runs the command line: `python -m expirer`; told to stop while its modules load, it ends at once."""

import os
import signal
import sys
from types import FrameType


def main() -> int:
    """Run the command line; return its exit code."""
    # By default the first process of a container would not hear of SIGTERM, and Ctrl-C would be a traceback.
    heard = {number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN}
    for number in heard:
        signal.signal(number, _leave)
    from expirer import cli  # noqa: PLC0415  # it takes a third of a second

    if signal.SIGINT in heard:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return cli.main()


def _leave(number: int, _frame: FrameType | None) -> None:
    has_begun_nothing = number == signal.SIGTERM and sys.argv[1:2] == ["run"]
    os._exit(0 if has_begun_nothing else 128 + number)


if __name__ == "__main__":
    sys.exit(main())
