"""`milnce embed`, `search` and `eval` with decoding processes: exit codes, what is written, and what is left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING

import numpy as np
import pytest

from helpers.commands import command, environment
from helpers.processes import decoders, eventually, heed_interrupts, is_alive, wait_for
from helpers.videos import loop_video, real_video
from milnce.features import read_features

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from helpers.commands import Ran, Tiny

    Run = Callable[..., Ran]

pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def long_videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return two videos of some minutes, so that processes can be stopped in the middle of them."""
    folder = tmp_path_factory.mktemp("long")
    first = loop_video(real_video("carphone_pristine"), folder / "first.mp4", 100)
    second = folder / "second.mp4"
    shutil.copy(first, second)
    return [first, second]


@pytest.mark.parametrize("name", ["f.npz", "f.parquet"])
def test_embed_writes_the_same_with_processes_and_without(
    name: str, tiny: Tiny, videos: Path, tmp_path: Path, run: Run
) -> None:
    outputs = []
    for workers in ("0", "2"):
        outputs.append(tmp_path / f"{workers}-{name}")
        ran = run("embed", "--bundle", tiny.path, "--out", outputs[-1], videos, "--workers", workers)
        assert ran.code == 0, ran.stderr
    here, there = map(read_features, outputs)
    assert here.path == there.path
    assert np.array_equal(here.embedding, there.embedding)
    assert np.array_equal(here.mixed_5c, there.mixed_5c)
    assert np.array_equal(here.start_s, there.start_s)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--workers", "-1"], "Invalid value for '--workers'"),
        (["--workers", "513"], "Error: workers is 513; a whole number from 0 to 512 expected, or None"),
        (["--decoder", "gpu"], "Error: no decoder 'gpu'; there are auto, cpu, nvdec"),
        (["--stall-s", "0"], "Error: stall_s is 0.0; a number of seconds above 0 expected"),
    ],
)
def test_options_out_of_range_exit_with_2(
    options: list[str], text: str, tiny: Tiny, videos: Path, tmp_path: Path, run_process: Run
) -> None:
    for arguments in (["embed", "--out", tmp_path / "f.npz", videos], ["search", "run", videos]):
        ran = run_process(*arguments, "--bundle", tiny.path, *options)
        assert ran.code == 2
        assert text in ran.stderr
    assert not (tmp_path / "f.npz").exists()


def test_eval_and_search_take_the_options(tiny: Tiny, videos: Path, tmp_path: Path, run: Run) -> None:
    captions = tmp_path / "captions.csv"
    captions.write_text("video,caption\na,run\nb,cut\nc,open\n")
    found = []
    for workers in ("0", "2"):
        how = ["--bundle", tiny.path, "--workers", workers, "--stall-s", "30", "--json"]
        ran = run("eval", "--captions", captions, "--videos", videos, *how)
        searched = run("search", "run", videos, "--no-index", *how)
        like = run("search", "--clip", videos / "a.mp4", videos, "--no-index", *how)
        assert (ran.code, searched.code, like.code) == (0, 0, 0), ran.stderr + searched.stderr + like.stderr
        found.append([json.loads(each.stdout) for each in (ran, searched, like)])
    assert found[0][0]["metrics"] == found[1][0]["metrics"]
    assert [each["queries"] for each in found[0][1:]] == [each["queries"] for each in found[1][1:]]


def started(tiny: Tiny, out: Path, *arguments: object) -> subprocess.Popen[str]:
    how = ["--preset", "sliding", "--stride-frames", 1, "--workers", 2, "--overwrite"]
    return subprocess.Popen(
        command("embed", "--bundle", tiny.path, "--out", out, *how, *arguments),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,  # noqa: PLW1509  the tests have one thread here
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_command_leaves_no_process(
    number: signal.Signals, tiny: Tiny, long_videos: list[Path], tmp_path: Path
) -> None:
    with started(tiny, tmp_path / "f.npz", *long_videos) as process:
        wait_for(lambda: len(decoders(process.pid)) == 2, process)
        workers = decoders(process.pid)
        wait_for(lambda: all("milnce" in name for name in map(command_of, workers)), process)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    codes = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}
    assert process.returncode == codes[number], stderr
    assert (stdout, "Traceback" in stderr) == ("", False)
    eventually(lambda: not any(map(is_alive, workers)))
    assert not (tmp_path / "f.npz").exists()


def command_of(pid: int) -> str:
    with open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123
        return file.read().decode()


def test_a_killed_process_costs_its_file_and_the_exit_code(
    tiny: Tiny, videos: Path, long_videos: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "f.npz"
    with started(tiny, out, long_videos[0], *sorted(videos.iterdir()), "--json") as process:
        # The other process is through with the short files while this one is at the long one.
        wait_for(lambda: decoders(process.pid), process)
        wait_for(lambda: any(holds(pid, long_videos[0]) for pid in decoders(process.pid)), process)
        (victim,) = [pid for pid in decoders(process.pid) if holds(pid, long_videos[0])]
        os.kill(victim, signal.SIGKILL)
        stdout, stderr = process.communicate(timeout=100)
    assert process.returncode == 1
    document = json.loads(stdout)
    assert [(each["path"], each["type"]) for each in document["failed"]] == [(str(long_videos[0]), "DecoderError")]
    assert "its decoding process was ended by signal 9 (SIGKILL)" in stderr
    assert "1 of 4 files failed." in stderr
    assert {each["path"] for each in document["files"]} == set(map(str, videos.iterdir()))
    assert set(read_features(out).path) == set(map(str, videos.iterdir()))


def holds(pid: int, path: Path) -> bool:
    """Whether a process has a file open."""
    folder = f"/proc/{pid}/fd"
    try:
        return any(os.readlink(f"{folder}/{fd}") == str(path) for fd in os.listdir(folder))  # noqa: PTH115, PTH208
    except FileNotFoundError:
        return False
