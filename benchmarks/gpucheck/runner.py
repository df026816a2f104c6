"""Runs the parts of the check, each in a process of its own, under a budget of seconds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gpucheck.models import RUNNERS
from gpucheck.record import ABSENT, BAD, ERROR, FAILED, PASSED, read_events
from gpucheck.settings import ROOT, Settings

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

NOT_RUN = "not run"
BUDGET_S = 540.0  # so that it fits into a job of ten minutes
_LOG_TAIL = 4_000


@dataclass(frozen=True)
class Part:
    """One part of the check.

    Attributes:
        name: As `--only` takes it.
        limit_s: Seconds it may take at most, within `BUDGET_S`; a larger budget stretches it.
        least_s: Seconds below which it is not begun.
        reserve_s: Seconds that the parts before it leave for it, where the budget has them.
        needs: Parts that make what it works on.
        uses: What of the host it can work with. If none of it is there, it ends at once, and nothing is left for it.
    """

    name: str
    limit_s: float
    least_s: float
    reserve_s: float
    needs: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()

    def has_work(self, present: Collection[str]) -> bool:
        """Whether a host with these parts gives it anything to do."""
        return not self.uses or not set(self.uses).isdisjoint(present)


_RUNNERS = tuple(name for names in RUNNERS.values() for name in names)

# In this order, so that what needs least comes first and what depends on it after. On a server with an H100 the first
# four take one to three minutes; building plans is what varies, and gets what the others leave. A budget below the sum
# of the reserves goes to the first parts: each leaves as many after it their reserves as it can; the last do not run.
PARTS = (
    Part("environment", 120, 1, 20),
    Part("tests", 180, 15, 60),
    Part("rtx", 60, 10, 10, uses=("tensorrt_rtx",)),
    Part("bundles", 200, 5, 40),
    Part("plans", 420, 10, 60, ("bundles",), ("tensorrt",)),
    Part("parity", 240, 15, 60, ("bundles", "plans"), _RUNNERS),
    Part("peaks", 60, 5, 15, uses=("torch",)),
    Part("latency", 300, 15, 90, ("bundles", "plans"), (*_RUNNERS, "torch")),
    Part("throughput", 120, 10, 30, ("bundles", "plans"), _RUNNERS),
    Part("memory", 120, 10, 30, ("bundles", "plans"), _RUNNERS),
)
NAMES = tuple(part.name for part in PARTS)


def chosen(only: Sequence[str]) -> list[Part]:
    """Return the parts asked for, those they need, and the environment; all if none is named."""
    if not only:
        return list(PARTS)
    wanted = {"environment", *only}
    for part in PARTS:
        if part.name in only:
            wanted |= set(part.needs)
    return [part for part in PARTS if part.name in wanted]


def run_parts(parts: Sequence[Part], settings: Settings, *, budget_s: float) -> Iterator[dict[str, Any]]:
    """Run the parts one after the other and yield what each found, as the report holds it.

    The settings get the parts of this host that are present from the part "environment". A part for which too little
    is left of the budget is not run, and says so; the environment always is.
    """
    ends = time.monotonic() + budget_s
    for index, part in enumerate(parts):
        left = ends - time.monotonic()
        waiting = [later for later in parts[index + 1 :] if later.has_work(settings.present)]
        limit_s = part.limit_s * max(1.0, budget_s / BUDGET_S)
        allowance = min(limit_s, left - _kept(part, waiting, left))
        if not part.has_work(settings.present):
            allowance = min(part.least_s, left)  # it only says so
        if part.name == "environment":
            allowance = limit_s  # without it nothing can be said
        if allowance < part.least_s:
            spent = f"{budget_s - left:.0f} of {budget_s:.0f} s of the budget were used"
            yield {"name": part.name, "outcome": NOT_RUN, "detail": spent, "checks": []}
            continue
        result = run_part(part.name, settings, limit_s=allowance)
        if part.name == "environment":
            settings = _with_present(settings, result["checks"])
        yield result


def _kept(part: Part, waiting: Sequence[Part], left: float) -> float:
    """Return the seconds that a part leaves to those after it: their reserves, as many as fit, the first ones first."""
    kept = 0.0
    for later in waiting:
        if left - kept - later.reserve_s < part.least_s:
            break
        kept += later.reserve_s
    return kept


def run_part(name: str, settings: Settings, *, limit_s: float) -> dict[str, Any]:
    """Run one part in a process of its own and return what it found; a crash or a hang is what it found, too."""
    folder = settings.folder
    folder.mkdir(parents=True, exist_ok=True)
    events, log, choices = folder / f"{name}.jsonl", folder / f"{name}.log", folder / "settings.json"
    events.unlink(missing_ok=True)
    choices.write_text(settings.to_json(), "utf-8")
    command = [sys.executable, "-X", "faulthandler", "-m", "gpucheck.part", name, str(choices), str(events)]
    began = time.monotonic()
    with log.open("wb") as output:
        # A session of its own, so that what it started ends with it.
        process = subprocess.Popen(  # noqa: S603
            command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env=_environment(), start_new_session=True
        )
        try:
            process.wait(timeout=limit_s)
            problem = _ending(process.returncode)
        except subprocess.TimeoutExpired:
            problem = f"stopped at its limit of {limit_s:.0f} s"
        finally:
            _end(process)
    checks, under_way = read_events(events)
    if problem is not None:
        blamed = f" during {under_way!r}" if under_way else ""
        detail = f"{problem}{blamed}"
        checks.append(
            {"kind": "process", "check": name, "outcome": ERROR, "detail": detail, "data": {"log": _tail(log)}}
        )
    seconds = round(time.monotonic() - began, 1)
    return {"name": name, "outcome": worst(checks), "detail": "", "seconds": seconds, "checks": checks}


def worst(checks: Sequence[dict[str, Any]]) -> str:
    """Return the outcome of a part from those of its checks."""
    outcomes = {check["outcome"] for check in checks}
    for bad in (ERROR, FAILED):
        if bad in outcomes:
            return bad
    return ABSENT if outcomes <= {ABSENT} else PASSED


def exit_code(results: Sequence[dict[str, Any]]) -> int:
    """Return 0 if all passed, 1 if something failed, 3 if nothing failed but a part was not run."""
    outcomes = {result["outcome"] for result in results}
    if outcomes & set(BAD):
        return 1
    return 3 if NOT_RUN in outcomes else 0


def _with_present(settings: Settings, checks: Sequence[dict[str, Any]]) -> Settings:
    found = tuple(check["check"] for check in checks if check["kind"] == "part" and check["outcome"] == PASSED)
    return replace(settings, present=found)


def _environment() -> dict[str, str]:
    folders = [str(ROOT / name) for name in ("benchmarks", "runtime", "convert", "tests")]
    given = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*folders, *([given] if given else [])]),
        "PYTHONUNBUFFERED": "1",
    }


def _ending(code: int) -> str | None:
    if code == 0:
        return None
    if code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    return f"its process ended with code {code}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the part's process and all that it started, if they still run."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tail(log: Path) -> str:
    return log.read_text("utf-8", errors="replace")[-_LOG_TAIL:]
