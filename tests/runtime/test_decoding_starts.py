"""Starting decoding processes where little is given: no standard input, no file descriptors, no processes at times."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from helpers.commands import environment
from helpers.processes import decoders
from milnce.decoding.shared_clips import SharedClips
from milnce.errors import DecoderError, InputError
from milnce.pipeline import embed_files
from milnce.video import get_preset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from milnce.model import Model

PRESET = get_preset("sliding", frames=4, size=32, stride_frames=3)


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


def without_memfd(monkeypatch: pytest.MonkeyPatch, *, library: object = None) -> None:
    monkeypatch.delattr(os, "memfd_create")
    if library is not None:
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: library)


@pytest.mark.parametrize("library", [None, SimpleNamespace()])
def test_clips_are_shared_where_python_or_the_c_library_lacks_memfd_create(
    library: object, model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = list(embed_files(model, [folder / "a.mp4"], preset=PRESET, workers=0))
    without_memfd(monkeypatch, library=library)
    memory = SharedClips((2, 3))
    name = os.readlink(f"/proc/self/fd/{memory.fd}")  # noqa: PTH115 - no path
    assert name.startswith("/memfd:milnce-clips" if library is None else "/dev/shm/")  # noqa: S108
    assert name.endswith("(deleted)")
    assert not os.get_inheritable(memory.fd)
    memory.close()
    found = list(embed_files(model, [folder / "a.mp4"], preset=PRESET, workers=1))
    assert [item.windows for item in found] == [item.windows for item in expected]
    assert np.array_equal(found[0].embedding, expected[0].embedding)


def refused(number: int) -> Callable[..., int]:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    return refuse


def test_a_system_without_memory_to_share_says_to_decode_in_this_process(
    model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = r"gives no memory to share with decoding processes \(.*Function not impl.*\); .*workers=0, --workers 0"
    with monkeypatch.context() as patch:
        patch.setattr(os, "memfd_create", refused(errno.ENOSYS))
        with pytest.raises(DecoderError, match=text):
            embed_files(model, [folder], preset=PRESET, workers=1)
    with monkeypatch.context() as patch:
        without_memfd(patch, library=SimpleNamespace(memfd_create=lambda *_: ctypes.set_errno(errno.ENOSYS) or -1))
        with pytest.raises(DecoderError, match="gives no memory to share"):
            embed_files(model, [folder], preset=PRESET, workers=1)
    monkeypatch.setattr(os, "ftruncate", refused(errno.ENOMEM))
    with pytest.raises(InputError, match=r"batch_size is 8, too large .*Cannot allocate memory"):
        embed_files(model, [folder], preset=PRESET, workers=1)


def test_shared_memory_that_is_full_is_told_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    without_memfd(monkeypatch, library=SimpleNamespace())
    monkeypatch.setattr(os, "posix_fallocate", refused(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        SharedClips((2, 3))
