"""`milnce search` with its index: what it embeds again, what it says, and how it is stopped, shared and refused."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from helpers.commands import command, environment
from helpers.processes import heed_interrupts, wait_for
from helpers.tiny_bundle import write_tiny_bundle
from helpers.videos import loop_video, make_video, real_video
from milnce.model import Model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from helpers.commands import Ran, Tiny

    Run = Callable[..., Ran]


@pytest.fixture
def folder(videos: Path, tmp_path: Path) -> Path:
    """Return a folder of three videos that the test may change."""
    return shutil.copytree(videos, tmp_path / "videos")


@pytest.fixture
def clips(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the number of clips of each run of the video tower."""
    counted: list[int] = []
    original = Model.encode_video

    def encode_video(model: Model, batch: Any, *, batch_size: int = 8) -> Any:  # noqa: ANN401 - arrays
        counted.append(len(batch))
        return original(model, batch, batch_size=batch_size)

    monkeypatch.setattr(Model, "encode_video", encode_video)
    return counted


def results(ran: Ran) -> Any:  # noqa: ANN401 - JSON
    return json.loads(ran.stdout)["queries"][0]["results"]


def test_a_second_search_embeds_only_what_is_new(
    tiny: Tiny, folder: Path, cache: Path, clips: list[int], run: Run
) -> None:
    asked = ["search", "--bundle", tiny.path, "open the door", folder, "--json"]
    first = run(*asked)
    assert (first.code, sum(clips)) == (0, 30)
    path = json.loads(first.stdout)["index"]["path"]
    assert path.startswith(f"{cache}/milnce/index-")
    assert f"Index {path}: 3 new; 3 embedded\n" in first.stderr
    clips.clear()
    second = run(*asked)
    assert clips == []
    assert f"Index {path}: 3 unchanged; 0 embedded\n" in second.stderr
    assert results(second) == results(first)
    (folder / "a.mp4").rename(folder / "renamed.mp4")
    make_video(folder / "b.mkv", frames=33, size=(64, 96))
    make_video(folder / "d.mp4", frames=45)
    third = run(*asked)
    assert sum(clips) == 20
    assert json.loads(third.stdout)["index"] == {
        "path": path,
        "precision": "fp32",
        "new": 2,
        "changed": 1,
        "unchanged": 1,
        "removed": 1,
        "embedded": 2,
    }
    assert "2 new, 1 changed, 1 unchanged, 1 removed; 2 embedded\n" in third.stderr
    anew = run(*asked, "--no-index")
    assert results(anew) == results(third)
    assert json.loads(anew.stdout)["index"] is None
    assert "Index" not in anew.stderr


def test_nothing_is_written_into_the_folder_searched(tiny: Tiny, folder: Path, run: Run) -> None:
    before = sorted(folder.rglob("*"))
    assert run("search", "--bundle", tiny.path, "run", folder).code == 0
    assert sorted(folder.rglob("*")) == before


def test_without_an_index_nothing_is_kept(tiny: Tiny, folder: Path, cache: Path, run: Run) -> None:
    assert run("search", "--bundle", tiny.path, "run", folder, "--no-index").code == 0
    # The index keeps whole videos; a range is embedded anew.
    ran = run("search", "--bundle", tiny.path, "run", folder, "--start-s", 0.2, "--json")
    assert (ran.code, json.loads(ran.stdout)["index"]) == (0, None)
    assert list(cache.iterdir()) == []


def test_the_index_may_lie_anywhere_and_move_with_the_videos(
    tiny: Tiny, folder: Path, tmp_path: Path, cache: Path, clips: list[int], run: Run
) -> None:
    index = folder / "my index"
    assert run("search", "--bundle", tiny.path, "run", folder, "--index", index).code == 0
    assert list(cache.iterdir()) == []
    moved = folder.rename(tmp_path / "moved")
    clips.clear()
    ran = run("search", "--bundle", tiny.path, "run", moved, "--index", moved / "my index")
    assert (ran.code, clips) == (0, [])
    assert "3 new; 0 embedded" in ran.stderr
    assert str(moved / "c.mp4") in ran.stdout
    # In the place of the old: nothing is found where it was.
    assert str(folder / "c.mp4") not in ran.stdout


def test_other_models_presets_and_precisions_have_an_index_each(
    tiny: Tiny, folder: Path, tmp_path: Path, cache: Path, run: Run
) -> None:
    write_tiny_bundle(tmp_path / "other", seed=1)
    asked = ["search", "--backend", "onnxruntime", "run", folder, "--json"]
    for options in (
        ["--bundle", tiny.path],
        ["--bundle", tmp_path / "other"],
        ["--bundle", tiny.path, "--stride-frames", "8"],
        ["--bundle", tiny.path, "--precision", "fp16"],
    ):
        kept = run(*asked, *options)
        assert kept.code == 0, kept.stderr
        assert "3 new; 3 embedded" in kept.stderr
        assert results(kept) == results(run(*asked, *options, "--no-index"))
    assert len(list((cache / "milnce").iterdir())) == 4
    # Another backend in the same precision is the same index.
    assert "3 unchanged; 0 embedded" in run("search", "--backend", "openvino", "run", folder, "-b", tiny.path).stderr


def test_an_index_of_another_model_or_sampling_is_refused(tiny: Tiny, folder: Path, tmp_path: Path, run: Run) -> None:
    other = write_tiny_bundle(tmp_path / "other", seed=1)
    index = tmp_path / "index.sqlite"
    asked = ["search", "run", folder, "--index", index]
    assert run(*asked, "--bundle", tiny.path).code == 0
    ran = run(*asked, "--bundle", tmp_path / "other")
    assert (ran.code, ran.stdout) == (1, "")
    assert f"model digest {tiny.weights.digest[:12]}..., not {other.digest[:12]}..." in ran.stderr
    assert "name another file (--index) for this search, or delete this one" in ran.stderr
    ran = run(*asked, "--bundle", tiny.path, "--preset", "milnce-eval")
    assert (ran.code, "made with preset digest" in ran.stderr) == (1, True)
    ran = run(*asked, "--bundle", tiny.path, "--precision", "fp16", "--json")
    assert (ran.code, "made with precision fp32, not fp16" in ran.stderr) == (1, True)
    assert json.loads(ran.stdout)["error"]["type"] == "SearchIndexError"


def test_a_damaged_index_is_an_error_that_says_what_to_do(tiny: Tiny, folder: Path, tmp_path: Path, run: Run) -> None:
    index = tmp_path / "index.sqlite"
    asked = ["search", "--bundle", tiny.path, "run", folder, "--index", index]
    assert run(*asked).code == 0
    database = sqlite3.connect(index)
    database.execute("UPDATE windows SET embedding = zeroblob(length(embedding)) WHERE content = 2")
    database.commit()
    database.close()
    ran = run(*asked)
    assert (ran.code, ran.stdout) == (1, "")
    assert ran.stderr.endswith(
        f"Error: {index}: damaged, the checksum of some embeddings does not fit; delete it and search again, which "
        "embeds the videos anew\n"
    )
    index.unlink()
    assert run(*asked).code == 0


def test_a_file_that_is_no_index_is_never_replaced(tiny: Tiny, folder: Path, run: Run) -> None:
    before = (folder / "a.mp4").read_bytes()
    ran = run("search", "--bundle", tiny.path, "run", folder, "--index", folder / "a.mp4")
    assert (ran.code, "a.mp4: damaged, or no search index" in ran.stderr) == (1, True)
    assert (folder / "a.mp4").read_bytes() == before


def test_options_that_contradict_each_other_are_refused(tiny: Tiny, folder: Path, tmp_path: Path, run: Run) -> None:
    asked = ["search", "--bundle", tiny.path, "run", folder, "--index", tmp_path / "i.sqlite"]
    ran = run(*asked, "--no-index")
    assert (ran.code, "--index and --no-index given; leave one out" in ran.stderr) == (2, True)
    ran = run(*asked, "--start-s", 1)
    assert (ran.code, "--index keeps whole videos" in ran.stderr) == (2, True)
    ran = run("search", "--bundle", tiny.path, "run", folder, "--index", tmp_path / "none" / "i.sqlite")
    assert (ran.code, "no such folder; make it first" in ran.stderr) == (1, True)


def test_failing_and_vanished_files_are_not_found(tiny: Tiny, folder: Path, run: Run) -> None:
    asked = ["search", "--bundle", tiny.path, "run", folder, "--per-file"]
    assert run(*asked).code == 0
    (folder / "a.mp4").unlink()
    (folder / "b.mkv").write_bytes(b"no video")
    for counts in ("1 unchanged, 1 removed; 0 embedded", "1 unchanged; 0 embedded"):
        ran = run(*asked)
        assert ran.code == 1
        assert counts in ran.stderr
        assert "b.mkv" in ran.stderr
        assert "1 of 2 files failed." in ran.stderr
        assert "c.mp4" in ran.stdout
        assert "a.mp4" not in ran.stdout + ran.stderr
        assert "b.mkv" not in ran.stdout


def test_a_missing_file_fails_and_the_others_are_found(tiny: Tiny, folder: Path, tmp_path: Path, run: Run) -> None:
    ran = run("search", "--bundle", tiny.path, "run", folder / "a.mp4", tmp_path / "none.mp4")
    assert (ran.code, "a.mp4" in ran.stdout) == (1, True)
    assert f"Failed: {tmp_path / 'none.mp4'}: no such file" in ran.stderr


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a real video of some minutes, so that a process can be stopped in the middle of it."""
    return loop_video(real_video("bigbuckbunny"), tmp_path_factory.mktemp("long") / "long.mp4", 100)


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,  # noqa: PLW1509  the tests have one thread here
    )


def files_in(index: Path) -> int:
    if not index.exists():
        return 0
    database = sqlite3.connect(index, timeout=30)
    try:
        count: int = database.execute("SELECT count(*) FROM files").fetchone()[0]
    except sqlite3.OperationalError:  # not made yet
        count = 0
    finally:
        database.close()
    return count


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_search_keeps_the_files_that_were_done(
    number: signal.Signals, tiny: Tiny, long_video: Path, tmp_path: Path, run: Run
) -> None:
    index = tmp_path / "index.sqlite"
    asked = ["search", "--bundle", tiny.path, "run", "--index", index, "--preset", "sliding", "--stride-frames", 1]
    process = start(*asked, real_video("bikes"), long_video, "--batch-size", 2)
    try:
        wait_for(lambda: files_in(index) == 1, process)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    assert (stdout, "Traceback" in stderr) == ("", False)
    if number == signal.SIGINT:
        assert stderr.splitlines()[-2:] == [
            f"Index {index}: it keeps the files that were done.",
            "Interrupted; nothing half-written is left.",
        ]
    ran = run(*asked, real_video("bikes"))
    assert (ran.code, "1 unchanged; 0 embedded" in ran.stderr) == (0, True)


def test_two_searches_of_the_same_folder_at_once_both_answer(tiny: Tiny, tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(8):
        make_video(folder / f"{number}.mp4", frames=20 + 3 * number)
    asked = ["search", "--bundle", tiny.path, "run", folder, "--json", "--index", tmp_path / "i.sqlite"]
    processes = [start(*asked) for _ in range(3)]
    answers = []
    for process in processes:
        stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
        answers.append(json.loads(stdout)["queries"])
    assert answers[0] == answers[1] == answers[2]
    assert "8 unchanged; 0 embedded" in run(*asked).stderr
