"""A signal after models on OpenVINO were closed: it must reach Python, in whatever order they went."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.alone

pytest.importorskip("openvino")

# OpenVINO's CPU plugin lends the thread that loads it a stack for signals. In a process of its own, since without the
# care that is tested here the signal ends it.
_CLOSE_THE_OLDER_FIRST = """
import os, signal, sys, time
import numpy as np
import milnce

# A job in the background of a shell inherits that it ignores interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
clip = np.zeros((1, 16, 64, 64, 3), np.uint8)
models = [milnce.load(sys.argv[1], backend="openvino") for _ in range(2)]
for model in models:
    model.encode_video(clip)
for model in models:
    model.close()
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(30)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_is_heard_after_models_were_closed_oldest_first() -> None:
    demo = Path(__file__).parents[2] / "engines" / "demo"
    command = [sys.executable, "-c", _CLOSE_THE_OLDER_FIRST, str(demo)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (result.returncode, result.stdout) == (0, "interrupted\n"), result.stderr
