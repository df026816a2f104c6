"""The `milnce` command."""

from __future__ import annotations

import io
import signal
import sys
from typing import NoReturn

INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def main() -> NoReturn:
    """Run the command line and exit the process."""
    # A polite kill ends as Ctrl-C does, through the `finally`s that remove temporary files.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file name the terminal's encoding lacks is shown escaped, as on stderr, and is no reason to stop.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        # Imported here, so that Ctrl-C while it loads is no traceback either.
        from milnce.cli.app import app  # noqa: PLC0415

        app(prog_name="milnce")
    except (KeyboardInterrupt, SystemExit) as stop:
        # Ctrl-C: as such while the commands load; typer and the commands make it this exit code.
        if isinstance(stop, SystemExit) and stop.code != INTERRUPTED:
            raise
        sys.stderr.write("Interrupted; nothing half-written is left.\n")
        sys.exit(INTERRUPTED)
    sys.exit(0)
