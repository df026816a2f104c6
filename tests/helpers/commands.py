"""Running `milnce` as a process of its own, whether it is installed or found through PYTHONPATH."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import milnce

if TYPE_CHECKING:
    from helpers.tiny_bundle import TinyWeights


@dataclass(frozen=True)
class Tiny:
    """A tiny bundle on disk and the weights that say what it must answer."""

    path: Path
    weights: TinyWeights


@dataclass(frozen=True)
class Ran:
    """What a command gave."""

    code: int
    stdout: str
    stderr: str


def command(*arguments: object) -> list[str]:
    """Return the command line of `milnce` in a process of its own."""
    return [sys.executable, "-m", "milnce.cli", *map(str, arguments)]


def environment(**changes: str) -> dict[str, str]:
    """Return this environment with milnce importable, however this process found it."""
    roots = [str(Path(str(milnce.__file__)).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, roots)), **changes}
