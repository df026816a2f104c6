"""Hooks for tests that need a GPU: skipped with one reason where there is none, and no skip where there is one.

A test says what it needs: `@pytest.mark.needs("tensorrt")`; a GPU is needed by all. `benchmarks/gpu_check.py` names in
MILNCE_GPU_PRESENT the parts it found, separated by commas, and then a skip of a test whose parts are all there is a
failure. In MILNCE_GPU_RESULTS it names a file that gets a line of JSON as each test begins and ends, in the form of
`gpucheck.record`, so that a crash of the process loses nothing.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from helpers.gpu_parts import PARTS, Part, find_parts

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = [
    "pytest_collection_modifyitems",
    "pytest_collectreport",
    "pytest_configure",
    "pytest_make_collect_report",
    "pytest_runtest_logreport",
    "pytest_runtest_logstart",
    "pytest_runtest_makereport",
    "pytest_runtest_setup",
]

PRESENT, RESULTS = "MILNCE_GPU_PRESENT", "MILNCE_GPU_RESULTS"
_TEXT = 4_000


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"needs(*parts): what the test needs beside a GPU, of {', '.join(PARTS)}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        unknown = _needed(item) - set(PARTS)
        if unknown:
            raise pytest.UsageError(f"{item.nodeid} needs {', '.join(sorted(unknown))}; parts are {', '.join(PARTS)}")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    cuda = _part("cuda")
    if not cuda.present:
        pytest.skip(f"no GPU to test on: {cuda.problem}")
    for name in sorted(_needed(item) - {"cuda"}):
        part = _part(name)
        if not part.present:
            pytest.skip(f"{name}: {part.problem}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    needed = _needed(item)
    report.user_properties = [*report.user_properties, ("needs", sorted(needed))]
    if report.skipped and needed <= _promised():
        report.outcome = "failed"
        report.longrepr = f"skipped although {', '.join(sorted(needed))} are here: {_reason(report)}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped and _promised():
        report.outcome = "failed"
        report.longrepr = f"a whole file is skipped: {_reason(report)}; mark its tests with needs(...) instead"
    return report


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        _write_end(report.nodeid, "failed", _reason(report), {"needs": ["cuda"]})


def pytest_runtest_logstart(nodeid: str) -> None:
    _write({"event": "start", "check": nodeid})


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or not report.passed:
        outcome = "absent" if report.skipped else report.outcome
        data = {"seconds": report.duration, **dict(report.user_properties)}
        if report.failed:
            data["text"] = report.longreprtext[-_TEXT:]
        _write_end(report.nodeid, outcome, "" if report.passed else _reason(report), data)


def _write_end(test: str, outcome: str, detail: str, data: dict[str, Any]) -> None:
    _write({"event": "end", "kind": "test", "check": test, "outcome": outcome, "detail": detail, "data": data})


def _needed(item: pytest.Item) -> set[str]:
    return {"cuda", *(name for mark in item.iter_markers("needs") for name in mark.args)}


def _promised() -> set[str]:
    return set(filter(None, os.environ.get(PRESENT, "").split(",")))


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Return why a test was skipped, or what it failed with and where, in a line."""
    found = report.longrepr
    if isinstance(found, tuple):
        return str(found[2]).removeprefix("Skipped: ")
    crash = getattr(found, "reprcrash", None)
    return str(found) if crash is None else f"{crash.message} ({crash.path}:{crash.lineno})"


@functools.cache
def _part(name: str) -> Part:
    return find_parts([name])[name]


def _write(event: dict[str, Any]) -> None:
    path = os.environ.get(RESULTS)
    if path:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")
