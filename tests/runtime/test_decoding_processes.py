"""Decoding in processes of its own: the same results, whatever happens to the processes and the files."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from helpers.commands import environment
from helpers.odd_worker import ENDS
from helpers.processes import decoders, eventually, is_alive
from helpers.videos import KINDS, make_video, real_videos
from milnce.decoding import crew, ledger, pool, process
from milnce.errors import DecoderError, MissingDependencyError, NonFiniteError, RangeError, VideoError
from milnce.pipeline import FileEmbeddings, embed_files, embed_spans
from milnce.video import get_preset

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from milnce.decoding.worker import Setup
    from milnce.model import Model
    from milnce.video import Preset

pytestmark = pytest.mark.alone

PRESET = get_preset("sliding", frames=4, size=32, stride_frames=3)


def same(found: FileEmbeddings, expected: FileEmbeddings) -> bool:
    return (
        found.error is None
        and found.path == expected.path
        and found.windows == expected.windows
        and np.array_equal(found.embedding, expected.embedding)
        and np.array_equal(found.mixed_5c, expected.mixed_5c)
    )


def copied(source: Path, target: Path) -> Path:
    shutil.copy(source, target)
    return target


def embedded_here(model: Model, paths: Sequence[Path], preset: Preset = PRESET) -> list[FileEmbeddings]:
    found = list(embed_files(model, paths, preset=preset, workers=0))
    assert [item.error for item in found] == [None] * len(paths)
    return found


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "WORKER", "helpers.odd_worker")


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Whatever a test does, no process of it and no file descriptor is left."""
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names only
    yield
    assert decoders() == []
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@pytest.mark.parametrize(("workers", "batch_size"), [(2, 3), (1, 100)])
def test_real_files_give_the_same_bits_in_other_processes(workers: int, batch_size: int, model: Model) -> None:
    preset = get_preset("milnce-native", frames=4, size=32)
    paths = real_videos()
    expected = embedded_here(model, paths, preset)
    found = list(embed_files(model, paths, preset=preset, workers=workers, batch_size=batch_size))
    assert len(found) == len(expected)
    assert all(map(same, found, expected))


def test_files_of_every_container_give_the_same_bits(model: Model, tmp_path: Path) -> None:
    paths = [
        make_video(tmp_path / f"{name}{KINDS[name][0]}", frames=40, gop=12)
        for name in ("mp4", "mov", "mkv", "webm-vp9", "avi", "gif")
    ]
    for preset in (PRESET, get_preset("tfhub-colab", frames=4, size=32)):
        found = embed_files(model, paths, preset=preset, workers=2, batch_size=5)
        assert all(map(same, found, embedded_here(model, paths, preset)))


@pytest.mark.usefixtures("odd")
def test_a_bad_end_costs_its_own_file_alone(
    model: Model, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = [copied(folder / "a.mp4", tmp_path / f"good{number}.mp4") for number in range(len(ENDS) + 1)]
    bad = [copied(folder / "a.mp4", tmp_path / f"{name}.mp4") for name in ENDS]
    paths = [path for pair in zip(good, bad, strict=False) for path in pair] + good[-1:]
    found = list(embed_files(model, paths, preset=PRESET, workers=2, stall_s=2.0))
    assert [item.path for item in found] == paths
    assert all(map(same, found[::2], embedded_here(model, good)))
    ends = dict(zip(ENDS, found[1::2], strict=True))
    assert {item.windows for item in ends.values()} == {()}
    dead = {name: item.error for name, item in ends.items() if isinstance(item.error, DecoderError)}
    assert str(dead.pop("hang")) == (
        f"{tmp_path}/hang.mp4: decoding made no progress for 2 s, so its process was ended; look at the file and its "
        "disk, or give it more time (--stall-s, stall_s)"
    )
    how = {"exit": "ended with exit code 3", "killed": "was ended by signal 9 (SIGKILL)"}
    how["segfault"] = "was ended by signal 11 (SIGSEGV)"
    assert {name: str(error) for name, error in dead.items()} == {
        name: f"{tmp_path}/{name}.mp4: its decoding process {text}; the file may be damaged, or the memory short"
        for name, text in how.items()
    }
    for name, text in (("bug", "ZeroDivisionError: division by zero"), ("memory", "MemoryError: no memory for a")):
        assert isinstance(ends[name].error, VideoError)
        assert f"{tmp_path}/{name}.mp4: decoding failed with {text}" in str(ends[name].error)
    assert "in _bug" in caplog.text, "the traceback is in the log"


@pytest.mark.usefixtures("odd")
@pytest.mark.timeout(60)
def test_the_slot_of_a_process_that_dies_while_it_writes_is_free_again(
    model: Model, folder: Path, tmp_path: Path
) -> None:
    torn = [copied(folder / "b.mkv", tmp_path / f"torn{number}.mkv") for number in range(6)]
    paths = [*torn, copied(folder / "a.mp4", tmp_path / "good.mp4")]
    # There are three slots, and a slot that is lost is missed for good: nobody could write into any at the end.
    found = list(embed_files(model, paths, preset=PRESET, workers=1, batch_size=1))
    assert all(isinstance(item.error, DecoderError) for item in found[:6])
    assert same(found[6], *embedded_here(model, paths[6:]))


@pytest.mark.parametrize("seed", [1, 2])
def test_processes_killed_at_random_moments_lose_and_double_nothing(
    seed: int, model: Model, folder: Path, tmp_path: Path
) -> None:
    chance = random.Random(seed)  # noqa: S311 - for a test
    paths = [copied(folder / "sub" / "c.mp4", tmp_path / f"{number:02}.mp4") for number in range(30)]
    expected = embedded_here(model, paths)
    killed: list[int] = []

    def kill(*_: object) -> None:
        if chance.random() < 0.06 and len(killed) < 12:
            alive = [pid for pid in decoders() if is_alive(pid)]
            if alive:
                killed.append(chance.choice(alive))
                os.kill(killed[-1], signal.SIGKILL)

    found = list(embed_files(model, paths, preset=PRESET, workers=3, batch_size=4, on_window=kill))
    assert len(killed) >= 5
    assert [item.path for item in found] == paths
    failed = [item for item in found if item.error is not None]
    assert len(failed) <= len(killed)
    for item, right in zip(found, expected, strict=True):
        if item.error is None:
            assert same(item, right)
        else:
            assert isinstance(item.error, DecoderError)
            assert f"{item.path}: its decoding process was ended by signal 9 (SIGKILL)" in str(item.error)
            assert (item.windows, len(item.embedding)) == ((), 0)


def test_a_thousand_tiny_files_come_in_order(model: Model, tmp_path: Path) -> None:
    first = make_video(tmp_path / "0000.gif", frames=2, size=(32, 32))
    for number in range(1, 1000):
        (tmp_path / f"{number:04}.gif").hardlink_to(first)
    found = list(embed_files(model, [tmp_path], preset=PRESET, workers=2))
    assert [item.path.name for item in found] == [f"{number:04}.gif" for number in range(1000)]
    (expected,) = embedded_here(model, [first])
    assert {item.error for item in found} == {None}
    assert all(np.array_equal(item.embedding, expected.embedding) for item in found)


def test_errors_of_files_keep_their_types(model: Model, folder: Path, tmp_path: Path) -> None:
    spans = [(folder / "a.mp4", 1.0, 2.0), (folder / "a.mp4", 99.0, None), (tmp_path / "gone.mp4", None, None)]
    found = list(embed_spans(model, spans, preset=PRESET, workers=2))
    assert [type(item.error) for item in found] == [type(None), RangeError, VideoError]
    here = list(embed_spans(model, spans, preset=PRESET, workers=0))
    assert [str(item.error) for item in found] == [str(item.error) for item in here]
    assert same(found[0], here[0])


def test_a_name_that_is_no_text_reaches_the_processes(model: Model, folder: Path, tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe 'a\n.mp4"))
    copied(folder / "a.mp4", path)
    (item,) = embed_files(model, [path], preset=PRESET, workers=1)
    assert item.error is None
    assert item.path == path


def test_a_file_that_fails_in_the_model_is_decoded_no_further(
    model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [folder / "a.mp4", folder / "b.mkv"]
    encode, calls = model.encode_video, []

    def spoil(clips: Any, *, batch_size: int = 8) -> Any:  # noqa: ANN401 - as the model's
        calls.append(len(clips))
        if len(calls) == 1:
            time.sleep(0.5)  # in which all the slots are filled
            raise NonFiniteError("NaN in mixed_5c")
        return encode(clips, batch_size=batch_size)

    monkeypatch.setattr(model, "encode_video", spoil)
    found = list(embed_files(model, paths, preset=PRESET, workers=1, batch_size=2))
    assert [str(item.error) for item in found] == [f"{paths[0]}: NaN in mixed_5c", "None"]
    # What the slots held of it is not run.
    assert sum(calls[1:]) == len(found[1].windows)


def test_a_process_that_cannot_start_is_one_clear_error(
    model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "WORKER", "helpers.dead_worker")
    starts: list[Setup] = []

    def start(setup: Setup) -> process.WorkerProcess:
        starts.append(setup)
        return process.WorkerProcess(setup)

    monkeypatch.setattr(crew, "WorkerProcess", start)
    text = r"no decoding process can be started: it ended with exit code 7 at once \(3 times in a row\).*--workers 0"
    with pytest.raises(DecoderError, match=text):
        list(embed_files(model, [folder], preset=PRESET, workers=1))
    assert len(starts) == 3


def test_a_system_that_starts_no_process_is_one_clear_error(
    model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(crew, "WorkerProcess", refuse)
    with pytest.raises(DecoderError, match=r"the system starts none, .*Resource temporarily unavailable"):
        list(embed_files(model, [folder], preset=PRESET, workers=2))


def test_a_decoder_library_that_does_not_load_says_what_to_install(
    model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "WORKER", "helpers.unloadable_worker")
    with pytest.raises(MissingDependencyError, match=r"decoded with PyAV, which cannot be imported .*bad ELF"):
        list(embed_files(model, [folder], preset=PRESET, workers=2))


def test_processes_find_their_modules_wherever_they_are_started(
    model: Model, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("numpy", "av", "json", "socket", "milnce"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('a file of the current folder was imported')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    (item,) = embed_files(model, [folder / "a.mp4"], preset=PRESET, workers=1)
    assert item.error is None


def test_a_caller_that_stops_reading_stops_the_processes(
    model: Model, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools: list[pool.DecodingPool] = []
    start = pool.DecodingPool._start  # noqa: SLF001 - to look inside

    def note(made: pool.DecodingPool) -> None:
        pools.append(made)
        start(made)

    monkeypatch.setattr(pool.DecodingPool, "_start", note)
    paths = [copied(folder / "a.mp4", tmp_path / f"{number}.mp4") for number in range(20)]
    stream = embed_files(model, paths, preset=PRESET, workers=2, batch_size=2)
    first = next(stream)
    inside = pools[0]._crew, pools[0]._slots  # noqa: SLF001

    def idle() -> bool:
        return inside[1].filled == len(inside[1]) and all(worker.wants for worker in inside[0].workers)

    eventually(idle)
    assert len(inside[1]) == 6, "three regions of two clips"
    rest = list(stream)
    assert all(map(same, [first, *rest], embedded_here(model, paths)))


def test_decoding_does_not_run_far_ahead_of_a_long_file(
    model: Model, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "WINDOWS_AHEAD", 3)
    paths = [copied(folder / "a.mp4", tmp_path / f"{number}.mp4") for number in range(6)]
    seen: list[Path] = []
    stream = embed_files(model, paths, preset=PRESET, workers=2, on_window=lambda path, _: seen.append(path))
    assert same(next(stream), embedded_here(model, paths[:1])[0])
    assert set(seen) <= set(paths[:2]), "with the first under way, and one more with its windows, none is begun"
    assert [item.path for item in stream] == paths[1:]


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_a_stream_that_is_closed_early_leaves_nothing(taken: int, model: Model, folder: Path) -> None:
    stream = embed_files(model, [folder], preset=PRESET, workers=2, batch_size=2)
    assert len(list(islice(stream, taken))) == taken
    assert bool(decoders()) == bool(taken)
    stream.close()  # type: ignore[attr-defined]  # it is a generator
    assert decoders() == []


def test_a_stream_that_is_forgotten_leaves_nothing(model: Model, folder: Path) -> None:
    stream = embed_files(model, [folder], preset=PRESET, workers=1, batch_size=2)
    next(stream)
    del stream
    eventually(lambda: decoders() == [])


def test_many_runs_leave_no_file_descriptor(model: Model, tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.gif", frames=2, size=(32, 32))
    counts = []
    for number in range(12):
        stream = embed_files(model, [path, path], preset=PRESET, workers=1)
        next(stream)
        if number % 2:
            stream.close()  # type: ignore[attr-defined]  # it is a generator
        else:
            list(stream)
        counts.append(len(os.listdir("/proc/self/fd")))  # noqa: PTH208 - only counted
    assert len(set(counts)) == 1


PROGRAM = """
import json, os, sys
sys.path[:0] = json.loads(sys.argv[1])
import milnce
from helpers.processes import decoders
from milnce.decoding import process
from milnce.video import get_preset
process.WORKER = "helpers.odd_worker"
model = milnce.load(sys.argv[2], backend="onnxruntime")
preset = get_preset("sliding", frames=4, size=32, stride_frames=3)
stream = model.embed_files(sys.argv[3:], preset=preset, workers=2, batch_size=1)
next(stream)
print(json.dumps(decoders()), flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, None])
def test_no_process_outlives_its_parent(
    number: signal.Signals | None, model: Model, folder: Path, tmp_path: Path
) -> None:
    tests = [str(Path(__file__).parents[1])]
    # One process hangs, the other waits for room.
    paths = [folder / "a.mp4", copied(folder / "a.mp4", tmp_path / "hang.mp4"), *[folder / "sub" / "c.mp4"] * 20]
    # With no signal it ends by itself, the stream still open.
    program = PROGRAM + ("input()\n" if number else "")
    with subprocess.Popen(
        [sys.executable, "-c", program, json.dumps(tests), str(model.bundle.path), *map(str, paths)],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        workers = json.loads(parent.stdout.readline())
        assert len(workers) == 2
        if number is not None:
            assert all(map(is_alive, workers))
            parent.send_signal(number)
        assert parent.wait(60) == (-number if number else 0)
        eventually(lambda: not any(map(is_alive, workers)))
