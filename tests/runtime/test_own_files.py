"""Who may have written what is in the folder of plans, and what writers leave there when they are killed."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from helpers.sidecars import DATA, make_sidecar, names_in
from milnce.bundle import Bundle
from milnce.errors import MilnceWarning, PlanError
from milnce.own_files import own_folder, temporary_file
from milnce.plan_folder import make_folder, read_cache, read_plan, sidecars, write_cache, write_plan

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from helpers.tiny_bundle import Tiny
    from milnce.manifest import GraphFile
    from milnce.plans import Plan


@pytest.fixture(scope="session")
def graph(tiny: Tiny) -> GraphFile:
    """Return the FP16 video graph of the tiny bundle."""
    return Bundle.open(tiny.path).graph("video", precision="fp16")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return where this test's plans go."""
    return tmp_path / "plans"


def test_what_is_no_plain_file_is_refused(graph: GraphFile, folder: Path, tmp_path: Path) -> None:
    plan = write_plan(folder, DATA, make_sidecar(graph))
    path = folder / plan.file
    path.unlink()
    with pytest.raises(PlanError, match=r"cannot be read \(No such file or directory\)"):
        read_plan(folder, plan)
    (tmp_path / "elsewhere").write_bytes(DATA)
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PlanError, match="cannot be read"):
        read_plan(folder, plan)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(PlanError, match="is not a plain file"):
        read_plan(folder, plan)
    path.unlink()
    path.mkdir()
    with pytest.raises(PlanError, match="is not a plain file"):
        read_plan(folder, plan)


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o722])
def test_a_folder_that_others_can_write_to_is_refused(mode: int, graph: GraphFile, folder: Path) -> None:
    plan = write_plan(folder, DATA, make_sidecar(graph))
    folder.chmod(mode)
    said = rf"plans is writable for others \(mode {mode:04o}\)\. A plan is native code, .*chmod go-w"
    for action in _uses(folder, plan):
        with pytest.raises(PlanError, match=said):
            action()
    folder.chmod(0o755)  # to be read by others is no harm
    assert read_plan(folder, plan) == DATA


@pytest.mark.parametrize("mode", [0o660, 0o606, 0o666, 0o622])
def test_files_that_others_can_write_to_are_refused(mode: int, graph: GraphFile, folder: Path) -> None:
    plan = write_plan(folder, DATA, make_sidecar(graph))
    write_cache(folder, "t.cache", DATA)
    folder.chmod(0o755)
    said = rf"is writable for others \(mode {mode:04o}\)\. A plan is native code, so nobody else may change it"
    for name in (plan.file, f"{plan.file}.json", "t.cache"):
        (folder / name).chmod(mode)
    with pytest.raises(PlanError, match=said):
        read_plan(folder, plan)
    plans, problems = sidecars(folder)
    assert plans == []
    assert f"chmod go-w {folder}/{plan.file}.json" in problems[0]
    with pytest.warns(MilnceWarning, match=said):
        assert read_cache(folder, "t.cache") is None
    for name in (plan.file, f"{plan.file}.json", "t.cache"):
        (folder / name).chmod(0o644)  # to be read by others is no harm
    assert read_plan(folder, plan) == DATA
    assert sidecars(folder) == ([plan], [])
    assert read_cache(folder, "t.cache") == DATA


def test_files_of_another_user_in_an_own_folder_are_refused(
    graph: GraphFile, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = write_plan(folder, DATA, make_sidecar(graph))
    write_cache(folder, "t.cache", DATA)
    fstat = os.fstat

    def of_another(descriptor: int) -> os.stat_result:
        status = fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            return status
        return os.stat_result((*status[:4], 12345, *status[5:]))

    monkeypatch.setattr(os, "fstat", of_another)
    said = (
        rf"belongs to user 12345, and this is user {os.geteuid()}\. A plan is native code, so those of others are not"
    )
    with pytest.raises(PlanError, match=rf"{plan.file} {said}.*; build it again: milnce build BUNDLE --force"):
        read_plan(folder, plan)
    assert re.search(said, sidecars(folder)[1][0])
    with pytest.warns(MilnceWarning, match=said):
        assert read_cache(folder, "t.cache") is None


def test_a_folder_of_another_user_is_refused_and_roots_is_not(
    graph: GraphFile, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = write_plan(folder, DATA, make_sidecar(graph))
    owner = folder.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    if owner != 0:
        for action in _uses(folder, plan):
            with pytest.raises(PlanError, match=f"belongs to user {owner}, and this is user {owner + 1}"):
                action()
    else:
        assert read_plan(folder, plan) == DATA
        os.chown(folder, 12345, -1)
        for action in _uses(folder, plan):
            with pytest.raises(PlanError, match=r"belongs to user 12345, and this is user 1\. A plan is native code"):
                action()


def _uses(folder: Path, plan: Plan) -> list[Callable[[], object]]:
    return [
        lambda: read_plan(folder, plan),
        lambda: sidecars(folder),
        lambda: write_plan(folder, DATA, plan),
        lambda: make_folder(folder),
        lambda: read_cache(folder, "x.cache"),
        lambda: write_cache(folder, "x.cache", b"x"),
    ]


def test_an_own_folder_that_others_can_read_is_closed_to_them(tmp_path: Path) -> None:
    folder = tmp_path / "plans"
    folder.mkdir(mode=0o700)
    folder.chmod(0o755)
    with pytest.warns(MilnceWarning, match=r"plans was open for others to read, .* \(mode 0700\); .*chmod 0755 /"):
        assert make_folder(folder) is False
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    make_folder(folder)  # and not said again: warnings are errors here


def test_roots_folder_keeps_its_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "plans"
    folder.mkdir()
    folder.chmod(0o755)
    fstat = os.fstat

    def of_root(descriptor: int) -> os.stat_result:
        status = fstat(descriptor)
        return os.stat_result((*status[:4], 0, *status[5:]))

    monkeypatch.setattr(os, "fstat", of_root)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    make_folder(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


def test_what_killed_builds_left_is_removed_and_what_is_being_written_is_not(folder: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from milnce.own_files import own_folder, temporary_file\n"
        "folder = Path(sys.argv[1])\n"
        "with own_folder(folder) as descriptor, temporary_file(folder, descriptor, 'a.plan', b'half of it'):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    make_folder(folder)
    assert subprocess.run([sys.executable, "-c", program, str(folder)], check=False).returncode == -signal.SIGKILL
    (left,) = names_in(folder)
    assert left.startswith(".a.plan.partial-")
    for other in (".hidden", "x.partial-1", "t.cache"):
        (folder / other).touch()
    (folder / ".link.partial-1").symlink_to(folder / "t.cache")
    with own_folder(folder) as descriptor, temporary_file(folder, descriptor, "b.plan", b"data") as being_written:
        make_folder(folder)
        assert being_written.read_bytes() == b"data"
        assert names_in(folder) == sorted([".hidden", ".link.partial-1", being_written.name, "t.cache", "x.partial-1"])
    assert not being_written.exists()
