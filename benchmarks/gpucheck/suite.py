"""The part that runs tests/gpu, with skips turned into failures for everything that is installed."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

from gpucheck.record import ABSENT, ERROR, FAILED, PASSED, read_events
from gpucheck.settings import ROOT
from helpers.gpu_parts import PARTS

if TYPE_CHECKING:
    from gpucheck.record import Recorder
    from gpucheck.settings import Settings

TESTS = ROOT / "tests" / "gpu"
TESTED = tuple(part for part in PARTS if part != "onnx")
_TEST_S = 120
_ALL_RAN = (0, 1)  # pytest's exit codes: all passed, some failed


def run(settings: Settings, record: Recorder) -> None:
    """Run the tests and hold them to the parts that are present: each must have been tested."""
    if find_spec("pytest") is None:
        record.add("tests", "pytest", ABSENT, "pytest is not installed, so tests/gpu did not run; pip install pytest")
        return
    import pytest  # noqa: PLC0415 - where it is installed

    from helpers import gpu_models, gpu_plugin  # noqa: PLC0415 - needs pytest

    os.environ[gpu_plugin.PRESENT] = ",".join(settings.present)
    os.environ[gpu_plugin.RESULTS] = str(record.path)
    os.environ["MILNCE_GPU_PLANS"] = str(settings.plans / "tests")  # built once, also when this runs again
    if settings.tactic_sources:
        os.environ[gpu_models.TACTIC_SOURCES] = ",".join(settings.tactic_sources)
    # No configuration file: it names plugins that this host may lack.
    arguments = ["-c", os.devnull, "--rootdir", str(ROOT), "--import-mode=importlib", "-p", "no:cacheprovider", "-ra"]
    arguments += ["--strict-markers", "-W", "error::milnce.errors.MilnceWarning"]
    if find_spec("pytest_timeout") is not None:
        arguments += [f"--timeout={_TEST_S}"]
    code = int(pytest.main([*arguments, str(TESTS)]))
    if code not in _ALL_RAN:
        record.add("tests", "pytest", ERROR, f"pytest ended with code {code}: see the log of this part")
    judge(settings, record)


def judge(settings: Settings, record: Recorder) -> None:
    """Count the tests that passed for each part that is present; none is a failure."""
    events, _ = read_events(record.path)
    passed = [event["data"]["needs"] for event in events if event["kind"] == "test" and event["outcome"] == PASSED]
    for part in settings.present:
        if part in TESTED:
            count = sum(part in needs for needs in passed)
            detail = "" if count else f"{part} is here and no test of it passed"
            record.add("tests", f"tests of {part}", PASSED if count else FAILED, detail, count=count)
