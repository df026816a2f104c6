"""The soak, short: it passes, and each thing that is planted makes it fail for that reason and no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import soak
from soaking.run import ACTIONS
from soaking.statistic import LIMITS, MIB
from soaking.watch import COUNTS, MEMORY

pytestmark = pytest.mark.alone

ROOT = Path(__file__).parents[2]
SECONDS = 20.0
LEAK = 16_384  # bytes a request
PLANTED = {
    "passes": (),
    "leaks": ("--leak", str(LEAK)),
    "leaves": tuple(f"--plant={kind}" for kind in (*COUNTS, "answers")),
}


@dataclass(frozen=True)
class Ended:
    """How a soak ended."""

    code: int
    report: dict[str, Any]
    stdout: str
    stderr: str
    folder: Path

    @property
    def problems(self) -> dict[str, str]:
        """What was wrong, by name."""
        problems: dict[str, str] = self.report["problems"]
        return problems


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """Run the soak and its controls side by side: what takes time is that each must be long enough to tell."""
    folder = tmp_path_factory.mktemp("soak")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)}
    command: list[str | Path] = [sys.executable, ROOT / "benchmarks" / "soak.py", "--minutes", str(SECONDS / 60)]
    running = {}
    for name, options in PLANTED.items():
        arguments: list[str | Path] = [*command, "--backend", "onnxruntime", "--results", folder / name, *options]
        running[name] = subprocess.Popen(
            arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    found = {}
    for name, process in running.items():
        stdout, stderr = process.communicate(timeout=400)
        path = folder / name / "soak.json"
        assert path.is_file(), stderr
        found[name] = Ended(process.returncode, json.loads(path.read_text("utf-8")), stdout, stderr, folder)
    return found


def test_mixed_traffic_leaves_nothing_and_every_answer_is_right(ended: dict[str, Ended]) -> None:
    found = ended["passes"]
    assert (found.code, found.problems, found.report["failures"]) == (0, {}, []), found.stderr
    assert "No error, and nothing grew." in found.stdout
    assert all(target["reached"] for target in found.report["targets"])
    assert {row["name"] for row in found.report["rows"]} == set(ACTIONS)
    assert found.report["left"]["requests"] == sum(row["requests"] for row in found.report["rows"]) > 500
    assert all(row["calls"] for row in found.report["rows"])
    assert found.report["tally"]["killed"] > 0
    assert found.report["tally"]["cancelled"] > 0
    assert found.report["tally"]["late"] > 0
    assert found.report["tally"]["refused"] > 0


def test_a_leak_of_memory_fails_it_for_that_reason_alone(ended: dict[str, Ended]) -> None:
    found = ended["leaks"]
    assert found.code == 1
    assert set(found.problems) == {"rss_bytes", "private_bytes"}
    growth = found.report["verdicts"]["private_bytes"]
    assert growth["request_bytes"] == pytest.approx(LEAK, rel=0.3)
    assert f"private_bytes: {found.problems['private_bytes']}" in found.stderr
    assert f"A control: {LEAK} bytes a request planted, so this must fail." in found.stdout


def test_whatever_is_left_behind_fails_it_for_that_reason(ended: dict[str, Ended]) -> None:
    found = ended["leaves"]
    assert found.code == 1
    lasting = {f"{name} at the end" for name in ("children", "shared_memory", "temporary_files")}
    # Threads that are left take memory too, which a slow machine may see grow.
    assert set(found.problems) - set(MEMORY) == {*COUNTS, *lasting, "answers"}
    for name in COUNTS:
        assert "and nothing was at work" in found.problems[name]
    assert "WrongAnswerError: " in found.problems["answers"]
    assert not found.report["targets"][0]["reached"]
    assert not found.report["targets"][2]["reached"]


def test_nothing_is_left_on_disk(ended: dict[str, Ended]) -> None:
    folder = ended["passes"].folder
    assert sorted(path.name for path in folder.iterdir()) == sorted(PLANTED)
    assert not list(Path("/dev/shm").glob("milnce-soak-*"))  # noqa: S108 - looked at


def test_memory_and_counts_are_judged_and_drawn(ended: dict[str, Ended]) -> None:
    report = ended["passes"].report
    assert set(report["verdicts"]) == {*MEMORY, *COUNTS}
    assert len(report["samples"]) >= 40
    requests = [sample["requests"] for sample in report["samples"]]
    assert requests == sorted(set(requests))
    assert all(sample["peak_bytes"] >= sample["private_bytes"] > 20 * MIB for sample in report["samples"])
    assert report["targets"][1]["wanted"] == LIMITS.growth_bytes / MIB
    assert (ended["passes"].folder / "passes" / "soak.png").stat().st_size > 5000


@pytest.mark.parametrize("arguments", [["--minutes", "0"], ["--minutes", "nan"], ["--leak", "-1"], ["--callers", "0"]])
def test_wrong_numbers_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert soak.main(arguments) == 2
    assert "--minutes above 0, --leak of at least 0 and --callers of at least 1 expected" in capsys.readouterr().err


def test_a_bundle_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert soak.main(["--minutes", "1", "--bundle", str(tmp_path / "nowhere"), "--results", str(tmp_path)]) == 2
    assert str(tmp_path / "nowhere") in capsys.readouterr().err
    assert not (tmp_path / "soak.json").exists()


def test_samples_are_thinned_evenly_with_both_ends() -> None:
    samples = [{"requests": number} for number in range(1000)]
    found = soak.thinned(samples, 300)
    assert len(found) == 300
    assert (found[0], found[-1]) == (samples[0], samples[-1])
    steps = {after["requests"] - before["requests"] for before, after in pairwise(found)}
    assert steps == {3, 4}
    assert soak.thinned(samples[:300], 300) == samples[:300]
