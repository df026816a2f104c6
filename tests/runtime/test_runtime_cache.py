"""TensorRT-RTX's compiled kernels beside their plan: kept, used again, and never trusted when they are not whole."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from helpers.plan_machine import PlanMachine
from helpers.tiny_bundle import tiny_clips
from milnce.backends import runtime_cache
from milnce.backends.runtime_cache import RuntimeCacheFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from helpers.tiny_bundle import Tiny


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tiny: Tiny, tmp_path: Path) -> Iterator[PlanMachine]:
    made = PlanMachine(monkeypatch, tiny, tmp_path / "plans", "rtx")
    yield made
    made.close()


def run_once(machine: PlanMachine) -> None:
    with machine.open() as backend:
        clips = tiny_clips(2)
        expected = machine.tiny.weights.video(clips)[1]
        np.testing.assert_allclose(backend.run({"video": clips})["mixed_5c"], expected, rtol=0, atol=2e-5)


def loads(monkeypatch: pytest.MonkeyPatch, machine: PlanMachine) -> list[tuple[bytes, bool]]:
    """Return a list of what the library was given to take back, and whether it did."""
    found: list[tuple[bytes, bool]] = []
    original = machine.trt.IRuntimeCache.deserialize

    def deserialise(self: Any, blob: bytes) -> bool:  # noqa: ANN401 - the library is not typed
        found.append((blob, bool(original(self, blob))))
        return found[-1][1]

    monkeypatch.setattr(machine.trt.IRuntimeCache, "deserialize", deserialise)
    return found


def test_kernels_are_kept_for_the_owner_alone_and_taken_back(
    machine: PlanMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = machine.plans / f"{machine.write().file}.cache"
    found = loads(monkeypatch, machine)
    run_once(machine)
    assert found == []
    first = path.stat()
    assert stat.S_IMODE(first.st_mode) == 0o600
    content = path.read_bytes()
    assert b"FAKERTXCACHE" in content
    run_once(machine)
    assert [taken for _, taken in found] == [True]
    # Nothing was compiled that was not there: the file was left alone.
    assert path.stat().st_ino == first.st_ino
    assert path.stat().st_mtime_ns == first.st_mtime_ns
    assert sorted(file.suffix for file in machine.plans.iterdir()) == [".cache", ".json", ".plan"]


def test_the_cache_is_set_before_kernels_are_compiled(machine: PlanMachine) -> None:
    machine.write()
    backend = machine.open()
    backend.run({"video": tiny_clips(1)})
    backend.close()
    (path,) = machine.plans.glob("*.cache")
    assert path.read_bytes().count(b"\n") == 2  # the magic, the key, and one graph's kernels


@pytest.mark.parametrize("kind", ["cut", "changed", "empty", "link", "pipe", "of another plan", "unreadable", "large"])
def test_a_cache_that_is_not_whole_is_not_used(
    machine: PlanMachine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    path = machine.plans / f"{machine.write().file}.cache"
    run_once(machine)
    content = path.read_bytes()
    found = loads(monkeypatch, machine)
    if kind == "cut":
        path.write_bytes(content[:-1])
    elif kind == "changed":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "link":
        (machine.plans / "elsewhere").write_bytes(content)
        path.unlink()
        path.symlink_to("elsewhere")
    elif kind == "pipe":
        path.unlink()
        os.mkfifo(path)
    elif kind == "of another plan":
        RuntimeCacheFile(path, "0" * 64).write(content[32:])
    elif kind == "unreadable":
        path.unlink()
        path.mkdir()
    else:
        monkeypatch.setattr(runtime_cache, "_LIMIT_BYTES", len(content) - 1)
    run_once(machine)
    assert found == []
    assert "kernels are compiled anew" in caplog.text
    if kind != "unreadable":  # and the next one has a whole one again
        assert path.read_bytes() == content
        assert not path.is_symlink()


def test_a_cache_of_another_gpu_is_offered_and_refused_by_the_library(
    machine: PlanMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = machine.plans / f"{machine.write().file}.cache"
    run_once(machine)
    plan = machine.open().plan
    cache = RuntimeCacheFile(path, plan.sha256)
    content = cache.read()
    assert content is not None
    cache.write(content.replace(b"First GPU", b"Other GPU"))
    found = loads(monkeypatch, machine)
    run_once(machine)
    assert [taken for _, taken in found] == [False]
    assert cache.read() == content


@pytest.mark.parametrize("how", ["folder", "disk"])
def test_a_cache_that_cannot_be_written_costs_time_alone(
    machine: PlanMachine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    machine.write()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    if how == "folder":
        monkeypatch.setattr("tempfile.mkstemp", full)
    else:
        monkeypatch.setattr("pathlib.Path.replace", full)
    run_once(machine)
    assert "was not written ([Errno 28] No space left on device); kernels are compiled anew next time" in caplog.text
    assert sorted(file.suffix for file in machine.plans.iterdir()) == [".json", ".plan"]


def test_a_library_that_gives_no_cache_closes_even_so(
    machine: PlanMachine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine.write()

    def refuse(_: object) -> None:
        raise RuntimeError("no context")

    monkeypatch.setattr(machine.trt.IRuntimeCache, "serialize", refuse)
    run_once(machine)
    assert "was not written (no context)" in caplog.text
    assert machine.fake.leaks() == {}
    assert list(machine.plans.glob("*.cache")) == []


def test_only_rtx_keeps_one(monkeypatch: pytest.MonkeyPatch, tiny: Tiny, tmp_path: Path) -> None:
    machine = PlanMachine(monkeypatch, tiny, tmp_path / "plans", "10")
    machine.write()
    run_once(machine)
    assert list(machine.plans.glob("*.cache")) == []
    machine.close()


def test_a_cache_that_others_can_write_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = RuntimeCacheFile(tmp_path / "plan.cache", "0" * 64)
    kept.write(b"kernels")
    assert RuntimeCacheFile(tmp_path / "plan.cache", "0" * 64).read() == b"kernels"
    (tmp_path / "plan.cache").chmod(0o666)
    assert RuntimeCacheFile(tmp_path / "plan.cache", "0" * 64).read() is None
    assert "kernels are compiled anew" in caplog.text
    assert "chmod" in caplog.text
