"""What the GPU check says of the host: driver, versions, cuDNN, and each library as it is looked at."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from gpucheck import environment
from gpucheck.record import ABSENT, PASSED, Recorder, read_events
from gpucheck.settings import Settings
from helpers import fake_cuda
from helpers.gpu_parts import PARTS, Part

if TYPE_CHECKING:
    from pathlib import Path

ANSWER = "NVIDIA H200, 580.159.04, 143771 MiB, 345 MHz, 1980 MHz, 3201 MHz, 700.00 W"


def put_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_nvidia_smi_is_read_field_by_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_smi(tmp_path, monkeypatch, f'echo "$@" >&2; echo "{ANSWER}"')
    found = environment.smi()
    assert found["name"] == "NVIDIA H200"
    assert found["driver_version"] == "580.159.04"
    assert found["clocks.max.sm"] == "1980 MHz"
    assert found["power.limit"] == "700.00 W"


@pytest.mark.parametrize("script", ["exit 9", "echo a, b", "true"])
def test_an_nvidia_smi_that_does_not_answer_is_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    put_smi(tmp_path, monkeypatch, script)
    assert environment.smi() == {}
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert environment.smi() == {}


@pytest.mark.parametrize(("number", "words"), [(91500, "9.15.0"), (90100, "9.1.0"), (8907, "8.9.7"), (8600, "8.6.0")])
def test_the_version_of_cudnn_is_written_as_people_write_it(
    monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    import torch  # noqa: PLC0415 - heavy, and needed here alone

    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: number)
    assert environment._cudnn() == words  # noqa: SLF001 - how it is written is what is tested
    library = SimpleNamespace(cudnnGetVersion=lambda: number)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: None)
    monkeypatch.setattr("gpucheck.environment.ctypes.CDLL", lambda _: library)
    assert environment._cudnn() == words  # noqa: SLF001 - as above


def test_the_gpu_comes_first_and_then_each_library_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda.install(monkeypatch, gpus=[fake_cuda.FakeGpu("NVIDIA Simulated", (9, 0), 1 << 30, 132)])

    class LibraryEndsProcess(BaseException):
        pass

    def find(names: list[str]) -> dict[str, Part]:
        (name,) = names
        if name == "torch":
            raise LibraryEndsProcess
        return {name: Part(name, "1.0", None if name in ("cuda", "tensorrt") else "not here")}

    monkeypatch.setattr(environment, "find_parts", find)
    record = Recorder(tmp_path / "events")
    with pytest.raises(LibraryEndsProcess):
        environment.run(Settings(str(tmp_path)), record)
    events, under_way = read_events(record.path)
    assert under_way == "torch"
    assert [event["check"] for event in events] == ["cuda", "gpu", "versions", *PARTS[1 : PARTS.index("torch")]]
    outcomes = {event["check"]: event["outcome"] for event in events}
    assert (outcomes["tensorrt"], outcomes["onnxruntime"]) == (PASSED, ABSENT)
    gpu = events[1]["data"]
    assert (gpu["name"], gpu["compute_capability"], gpu["count"]) == ("NVIDIA Simulated", [9, 0], 1)
    assert "numpy" in events[2]["data"]["packages"]


def test_without_a_gpu_nothing_else_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda.install(monkeypatch, driver="absent")
    record = Recorder(tmp_path / "events")
    environment.run(Settings(str(tmp_path)), record)
    (event,) = read_events(record.path)[0]
    assert (event["check"], event["outcome"]) == ("cuda", ABSENT)
    assert "driver" in event["detail"]
