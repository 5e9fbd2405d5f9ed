"""Runs the command line: `python -m expirer`."""

import sys

from expirer.cli import main

if __name__ == "__main__":
    sys.exit(main())
