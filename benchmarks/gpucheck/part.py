"""A part's process: python -m gpucheck.part NAME SETTINGS.json EVENTS.jsonl."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from gpucheck.record import Recorder
from gpucheck.settings import Settings

MODULES = {
    "environment": "environment",
    "tests": "suite",
    "rtx": "rtx",
    "bundles": "bundles",
    "plans": "plans",
    "parity": "parity",
    "peaks": "limits",
    "latency": "latency",
    "throughput": "throughput",
    "memory": "memory",
}


def main(name: str, settings: str, events: str) -> None:
    """Run the part; what it does not catch ends the process with a traceback in its log."""
    part = import_module(f"gpucheck.{MODULES[name]}")
    part.run(Settings.from_json(Path(settings).read_text("utf-8")), Recorder(Path(events)))


if __name__ == "__main__":
    main(*sys.argv[1:])
