"""Starting decoding processes where little is given: no standard input, no file descriptors, no processes at times."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from helpers.commands import environment
from helpers.processes import decoders, eventually
from helpers.videos import make_video
from milnce.decoding import crew, process, starts
from milnce.decoding.events import Batch, Job
from milnce.decoding.messages import Channel
from milnce.decoding.shared_clips import SharedClips
from milnce.decoding.source import DecodingOptions, open_source
from milnce.decoding.starts import Starts
from milnce.errors import ClosedError, DecoderError, InputError
from milnce.pipeline import embed_files, embed_spans
from milnce.video import get_preset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from milnce.decoding.worker import Setup
    from milnce.model import Model

pytestmark = pytest.mark.alone

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


class Clock:
    """A clock that goes on when told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        """Return its seconds."""
        return self.now_s


def test_the_first_start_is_given_up_after_three_failures() -> None:
    account = Starts(Clock())
    assert account.wait_s == 0.0
    hopeless = []
    for _ in range(3):
        hopeless.append(account.hopeless)
        account.have_failed("none left", others=False)
    assert [*hopeless, account.hopeless] == [False, False, False, True]
    assert "can be started: none left (3 times in a row)" in account.describe()


def test_later_starts_are_tried_again_ever_more_slowly_for_half_a_minute() -> None:
    clock = Clock()
    account = Starts(clock)
    account.succeeded()
    begin_s, waited_s = clock.now_s, []
    for _ in range(99):
        if account.hopeless:
            break
        account.have_failed("none left", others=False)
        waited_s.append(account.wait_s)
        clock.now_s += account.wait_s
    assert waited_s[:7] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.0, 3.0])
    assert 30 <= clock.now_s - begin_s <= 36
    account.succeeded()
    account.have_failed("none left", others=False)
    assert account.wait_s == pytest.approx(0.1), "counted anew"
    clock.now_s += 3600
    assert not account.hopeless, "nothing was tried meanwhile"
    for _ in range(2000):
        clock.now_s += 3
        account.have_failed("none left", others=True)
    assert not account.hopeless, "others work"
    account.have_failed("none left", others=False)
    assert not account.hopeless, "alone since now"


class Starter:
    """Starts processes, but for some that it lets fail in a certain way.

    Args:
        patch: Puts it in the place of the real one.
        how: "refused" by the system, "dead" at once, or "broken", which says why before it ends.
        failing: Which of the starts fail, counted from 0.
    """

    def __init__(self, patch: pytest.MonkeyPatch, how: str, failing: range) -> None:
        self.starts = 0
        self._patch = patch
        self._how = how
        self._failing = failing
        patch.setattr(crew, "WorkerProcess", self.start)
        patch.setattr(starts, "_SHORTEST_S", 0.001)

    def start(self, setup: Setup) -> process.WorkerProcess:
        """Start a process, or one that fails."""
        fails = self.starts in self._failing
        self.starts += 1
        if fails and self._how == "refused":
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        if fails and self._how == "broken":
            setup["niceness"] = "none"  # type: ignore[typeddict-item]  # on purpose
        with self._patch.context() as patch:
            if fails and self._how == "dead":
                patch.setattr(process, "WORKER", "helpers.dead_worker")
            return process.WorkerProcess(setup)


def kill_one() -> None:
    os.kill(decoders()[0], signal.SIGKILL)


@pytest.mark.parametrize("how", ["refused", "dead", "broken"])
def test_a_process_that_cannot_be_replaced_for_a_while_costs_its_file_alone(
    how: str, model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starter = Starter(monkeypatch, how, range(1, 5))
    stream = embed_spans(model, [(folder / "a.mp4", None, None)] * 6, preset=PRESET, batch_size=1, workers=1)
    found = [next(stream)]
    kill_one()
    found += stream
    assert starter.starts == 6
    errors = [item.error for item in found if item.error is not None]
    assert len(found) == 6
    assert [type(error) for error in errors] in ([], [DecoderError])
    assert all("SIGKILL" in str(error) for error in errors)


@pytest.mark.parametrize("how", ["refused", "dead", "broken"])
def test_when_no_process_can_be_replaced_any_more_every_file_that_is_left_says_so(
    how: str, model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starter = Starter(monkeypatch, how, range(1, 1000))
    monkeypatch.setattr(starts, "PATIENCE_S", 0.1)
    stream = embed_spans(model, [(folder / "a.mp4", None, None)] * 9, preset=PRESET, batch_size=1, workers=1)
    found = [next(stream)]
    kill_one()
    found += stream
    assert starter.starts >= 4
    assert len(found) == 9
    assert found[0].error is None
    why = {"refused": "temporarily unavail", "dead": "it ended with exit code 7", "broken": "TypeError: 'str' object"}
    for item in found[-4:]:
        assert isinstance(item.error, DecoderError)
        assert f"{item.path}: no decoding process can be started: " in str(item.error)
        assert why[how] in str(item.error)
        assert "--workers 0" in str(item.error)


def test_a_process_that_is_down_while_others_work_is_replaced_later(
    model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starts, "PATIENCE_S", 0.0)
    Starter(monkeypatch, "refused", range(1, 9))
    stream = embed_spans(model, [(folder / "a.mp4", None, None)] * 9, preset=PRESET, batch_size=1, workers=2)
    found = [next(stream)]
    eventually(lambda: len(decoders()) == 2)
    found += stream
    assert [item.error for item in found] == [None] * 9


@pytest.mark.parametrize("lacking", [(os, "eventfd"), (selectors, "DefaultSelector"), (threading.Thread, "start")])
def test_a_system_short_of_descriptors_or_threads_is_one_clear_error_and_nothing_leaks(
    lacking: tuple[object, str], model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = embed_files(model, [folder / "a.mp4"], preset=PRESET, workers=1)
    with monkeypatch.context() as patch:
        patch.setattr(*lacking, refused(errno.EMFILE))
        with pytest.raises(DecoderError, match=r"started: .*Too many open files.*workers=0, --workers 0"):
            next(stream)
    assert list(stream) == []


def test_a_thread_that_is_refused_is_a_decoder_error_too(
    model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    stream = embed_files(model, [folder / "a.mp4"], preset=PRESET, workers=1)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(DecoderError, match="can't start new thread"):
        next(stream)


def test_times_may_be_numbers_of_numpy(model: Model, folder: Path) -> None:
    spans: list[Any] = [(folder / "a.mp4", np.int64(0), np.float32(0.9)), (folder / "a.mp4", np.float64(1.1), None)]
    found = [list(embed_spans(model, spans, preset=PRESET, workers=workers)) for workers in (0, 1)]
    for here, there in zip(*found, strict=True):
        assert there.error is None
        assert there.windows == here.windows
        assert np.array_equal(there.embedding, here.embedding)


def test_a_consumer_whose_source_is_closed_meanwhile_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "WORKER", "helpers.odd_worker")
    jobs = [Job(0, Path(make_video(tmp_path / "hang.mp4", frames=40)), None, None)]
    options = DecodingOptions(1, 60.0, "auto")
    source = open_source(jobs, PRESET, 1, device="cpu", options=options)
    texts: list[str] = []
    hangs = threading.Event()

    def consume() -> None:
        seen = 0
        try:
            while True:
                if seen == 2:
                    hangs.set()
                found = source.next(wait=True)
                if isinstance(found, Batch):
                    source.release(found)
                    seen += len(found.owners)
        except ClosedError as error:
            texts.append(str(error))

    thread = threading.Thread(target=consume)
    thread.start()
    assert hangs.wait(60)
    source.close()
    thread.join(60)
    assert texts == ["decoding was stopped while its results were waited for; ask for them anew"]
    with pytest.raises(ClosedError):
        source.next(wait=False)


def test_an_interpreter_that_ends_at_once_is_said_to(
    model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/true")
    with pytest.raises(DecoderError, match="can be started: it ended with exit code 0 at once"):
        list(embed_files(model, [folder / "a.mp4"], preset=PRESET, workers=1))


@pytest.mark.parametrize("error", [BrokenPipeError(errno.EPIPE, "Broken pipe"), OSError(errno.ENOBUFS, "No buffer")])
def test_a_process_that_cannot_be_told_what_to_do_is_ended(
    error: OSError, model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def send(channel: Channel, *_: object) -> None:
        if isinstance(error, BrokenPipeError):
            channel.connection.shutdown(socket.SHUT_WR)  # it finds no more to read, and ends
        raise error

    monkeypatch.setattr(Channel, "send", send)
    why = "it ended with exit code 0 at once" if isinstance(error, BrokenPipeError) else "starts none, .*No buffer"
    with pytest.raises(DecoderError, match=why):
        list(embed_files(model, [folder / "a.mp4"], preset=PRESET, workers=1))


FORK = """
import os, signal, sys, threading
import milnce
from milnce.video import get_preset
model = milnce.load(sys.argv[1], backend="onnxruntime")
preset = get_preset("sliding", frames=4, size=32, stride_frames=3)
stream = model.embed_files(sys.argv[2:], preset=preset, workers=1, batch_size=1)
paths = [next(stream).path]
pool = stream.gi_frame.f_locals["self"]._source
held, forked = threading.Event(), threading.Event()
def hold():  # as the pool's thread may at that moment
    with pool._changed:
        held.set()
        forked.wait()
threading.Thread(target=hold).start()
held.wait()
child = os.fork()
if child == 0:
    signal.alarm(30)  # it must not outlive a test that fails
    stream.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
forked.set()
paths += [item.path for item in stream if item.error is None]
print(len(paths))
"""


def test_a_fork_of_the_caller_closes_nothing_of_it(model: Model, folder: Path) -> None:
    paths = [str(folder / "a.mp4"), str(folder / "b.mkv"), str(folder / "sub" / "c.mp4")]
    done = subprocess.run(
        [sys.executable, "-c", FORK, str(model.bundle.path), *paths],
        env=environment(),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    assert done.stdout == "3\n"
