"""The folder of plans: what is refused before a library ever sees it, and writing that leaves nothing half done."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helpers.sidecars import DATA, make_sidecar, names_in
from milnce.bundle import Bundle
from milnce.errors import MilnceWarning, OutputError, PlanError
from milnce.plan_folder import make_folder, read_cache, read_plan, sidecars, write_cache, write_plan

if TYPE_CHECKING:
    from helpers.tiny_bundle import Tiny
    from milnce.manifest import GraphFile


@pytest.fixture(scope="session")
def graph(tiny: Tiny) -> GraphFile:
    """Return the FP16 video graph of the tiny bundle."""
    return Bundle.open(tiny.path).graph("video", precision="fp16")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return where this test's plans go."""
    return tmp_path / "plans"


def test_a_plan_comes_back_as_it_was_written(graph: GraphFile, folder: Path) -> None:
    assert read_plan(folder, write_plan(folder, DATA, make_sidecar(graph))) == DATA
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


@pytest.mark.parametrize("place", range(16))
def test_a_plan_cut_anywhere_is_refused(place: int, graph: GraphFile, folder: Path) -> None:
    plan = write_plan(folder, DATA, make_sidecar(graph))
    kept = len(DATA) * place // 16
    (folder / plan.file).write_bytes(DATA[:kept])
    with pytest.raises(PlanError, match=f"was cut or changed: it has {kept} bytes, its sidecar says {len(DATA)}"):
        read_plan(folder, plan)


@pytest.mark.parametrize("place", range(64))
def test_one_flipped_bit_anywhere_is_refused(place: int, graph: GraphFile, folder: Path) -> None:
    plan = write_plan(folder, DATA, make_sidecar(graph))
    changed = bytearray(DATA)
    changed[(len(DATA) - 1) * place // 63] ^= 1 << place % 8
    (folder / plan.file).write_bytes(changed)
    with pytest.raises(PlanError, match=r"was changed or damaged: its sha256 is .*build it again: milnce build BUNDLE"):
        read_plan(folder, plan)


def test_a_longer_plan_is_refused_without_reading_all_of_it(graph: GraphFile, folder: Path) -> None:
    plan = write_plan(folder, DATA, make_sidecar(graph))
    with (folder / plan.file).open("r+b") as file:
        file.truncate(2**40)  # a sparse file; reading it would take all memory
    with pytest.raises(PlanError, match=f"it has {2**40} bytes, its sidecar says {len(DATA)}"):
        read_plan(folder, plan)


@pytest.mark.parametrize("said", [10**12, 2**62])
def test_a_sidecar_that_says_more_than_memory_holds_is_refused_before_reading(
    said: int, graph: GraphFile, folder: Path
) -> None:
    plan = write_plan(folder, DATA, make_sidecar(graph))
    with pytest.raises(PlanError, match=f"it has {len(DATA)} bytes, its sidecar says {said}"):
        read_plan(folder, replace(plan, bytes=said))


def test_a_sidecar_of_another_file_is_refused(graph: GraphFile, folder: Path) -> None:
    plan = write_plan(folder, DATA, make_sidecar(graph))
    shutil.copy(folder / plan.file, folder / "other.plan")
    shutil.copy(folder / f"{plan.file}.json", folder / "other.plan.json")
    plans, problems = sidecars(folder)
    assert plans == [plan]
    assert problems == [
        (
            f"{folder}/other.plan.json is the sidecar of {plan.file}, not of other.plan; "
            "build it again: milnce build BUNDLE --force"
        )
    ]


def test_a_huge_sidecar_is_not_read(graph: GraphFile, folder: Path) -> None:
    plan = write_plan(folder, DATA, make_sidecar(graph))
    with (folder / f"{plan.file}.json").open("r+b") as file:
        file.truncate(2**40)
    assert "is larger than 1048576 bytes, so it is no sidecar" in sidecars(folder)[1][0]


def test_writing_replaces_and_leaves_no_other_file(graph: GraphFile, folder: Path) -> None:
    write_plan(folder, DATA, make_sidecar(graph))
    plan = write_plan(folder, DATA[::-1], make_sidecar(graph, build_s=9))
    assert read_plan(folder, plan) == DATA[::-1]
    assert names_in(folder) == [plan.file, f"{plan.file}.json"]


@pytest.mark.parametrize("failing", ["fsync", "rename"])
def test_a_write_that_fails_leaves_nothing_half_written(
    failing: str, graph: GraphFile, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = write_plan(folder, DATA, make_sidecar(graph))
    count = 0

    def fail(*_: object, **__: object) -> None:
        nonlocal count
        count += 1
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    if failing == "rename":
        monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(
        OutputError, match=r"plans cannot be written to .*plans: No space left on device; choose another"
    ):
        write_plan(folder, DATA[::-1], make_sidecar(graph))
    assert count == 1
    assert not [name for name in names_in(folder) if name.startswith(".")]
    if failing == "fsync":  # before anything was touched
        assert read_plan(folder, old) == DATA
        assert sidecars(folder)[0] == [old]
    else:
        assert names_in(folder) == []


def test_an_interrupted_write_leaves_no_temporary_file(
    graph: GraphFile, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_plan(folder, DATA, make_sidecar(graph))
    assert names_in(folder) == []


@pytest.mark.parametrize("renamed", [0, 1])
def test_an_interruption_between_two_renames_leaves_neither_file(
    renamed: int, graph: GraphFile, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_plan(folder, DATA, make_sidecar(graph))
    rename, count = Path.rename, 0

    def interrupt(self: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count > renamed:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_plan(folder, DATA[::-1], make_sidecar(graph))
    assert names_in(folder) == []


def test_between_two_renames_no_plan_lies_beside_another_ones_sidecar(
    graph: GraphFile, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_plan(folder, DATA, make_sidecar(graph))
    seen: list[list[str]] = []
    rename = Path.rename
    other = os.open(folder, os.O_RDONLY)

    def spy(self: Path, target: Path) -> Path:
        with pytest.raises(BlockingIOError):  # another writer waits meanwhile
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        seen.append(sorted(name for name in names_in(folder) if name.endswith(".json")))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", spy)
    write_plan(folder, DATA[::-1], make_sidecar(graph))
    os.close(other)
    assert seen == [[], []]


def test_two_writers_of_one_plan_take_turns(graph: GraphFile, folder: Path) -> None:
    make_folder(folder)
    writer = threading.Thread(target=write_plan, args=(folder, DATA, make_sidecar(graph)))
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        writer.start()
        writer.join(0.3)
        assert writer.is_alive()
        # Not even a temporary file: until it is locked itself, a build that starts would take it for abandoned.
        assert names_in(folder) == []
    finally:
        os.close(descriptor)  # or the writer would wait for ever
    writer.join(30)
    assert len(sidecars(folder)[0]) == 1


def test_files_and_then_the_folder_are_flushed_to_disk(
    graph: GraphFile, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[tuple[bool, list[str]]] = []

    def note(descriptor: int) -> None:
        flushed.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), names_in(folder)))

    monkeypatch.setattr(os, "fsync", note)
    plan = write_plan(folder, DATA, make_sidecar(graph))
    assert [is_folder for is_folder, _ in flushed] == [False, False, True]
    assert flushed[-1][1] == [plan.file, f"{plan.file}.json"]


def test_a_folder_is_made_for_its_owner_alone_and_tried_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    assert make_folder(tmp_path / "a" / "plans") is True
    assert make_folder(tmp_path / "a" / "plans") is False
    assert stat.S_IMODE((tmp_path / "a" / "plans").stat().st_mode) == 0o700
    assert names_in(tmp_path / "a" / "plans") == []
    with monkeypatch.context() as full:
        full.setattr(tempfile, "mkstemp", no_space)
        with pytest.raises(OutputError, match=r"No space left on device; choose another"):
            make_folder(tmp_path / "a" / "plans")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"plans cannot be written to .*file: File exists; choose another folder"):
        make_folder(tmp_path / "file")


def test_a_cache_comes_back_and_a_damaged_one_does_not(folder: Path) -> None:
    make_folder(folder)
    assert read_cache(folder, "t.cache") is None
    write_cache(folder, "t.cache", DATA)
    assert read_cache(folder, "t.cache") == DATA
    assert names_in(folder) == ["t.cache"]
    path = folder / "t.cache"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[100] ^= 1
    for damaged in (b"", whole[:10], whole[:-1], bytes(flipped), whole + b"x"):
        path.write_bytes(damaged)
        with pytest.warns(MilnceWarning, match=r"t\.cache is damaged and not used; a new one is begun"):
            assert read_cache(folder, "t.cache") is None
    path.unlink()
    path.mkdir()
    with pytest.warns(MilnceWarning, match=r"a cache is not used: .*is not a plain file"):
        assert read_cache(folder, "t.cache") is None
