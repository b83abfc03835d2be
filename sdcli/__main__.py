"""`python -m sdcli` and the `sdcli` script."""

import sys
import warnings

from sdcli.terminal import signals


def main() -> None:
    """Run the command line and exit with its status."""
    signals.exit_at_once()  # the imports take a while
    from sdcli.cli import run
    from sdcli.terminal import streams

    streams.prepare()
    if not sys.warnoptions:  # those of libraries are for programmers
        warnings.filterwarnings("ignore", module=r"(torch|diffusers|transformers)(\.|$)")
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
