"""`python -m sdcli` and the `sdcli` script."""

import sys

from sdcli.cli import run
from sdcli.terminal import streams


def main() -> None:
    """Run the command line and exit with its status."""
    streams.prepare()
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
