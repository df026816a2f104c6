"""Starting decoding processes where little is given: no standard input, no file descriptors, no processes at times."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from helpers.commands import environment
from helpers.processes import decoders

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from milnce.model import Model


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Whatever a test does, no process of it and no file descriptor is left."""
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names only
    yield
    assert decoders() == []
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


PROGRAM = """
import json, os, sys
import milnce
from milnce.video import get_preset
model = milnce.load(sys.argv[1], backend="onnxruntime")
for fd in json.loads(sys.argv[2]):
    os.close(fd)
preset = get_preset("sliding", frames=4, size=32, stride_frames=3)
found = list(model.embed_files(sys.argv[3:], preset=preset, workers=1))
os.write(2, json.dumps([[len(item.windows), str(item.error)] for item in found]).encode())
"""


@pytest.mark.parametrize("closed", [[0], [1], [0, 1]])
def test_a_caller_without_standard_input_or_output_decodes(closed: list[int], model: Model, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(model.bundle.path), json.dumps(closed), str(folder / "a.mp4")],
        env=environment(),
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=60,
    )
    ((windows, error),) = json.loads(done.stderr)
    assert (windows > 0, error) == (True, "None")
