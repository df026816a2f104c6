"""Keeps one process busy with mixed traffic for half an hour, and sees that nothing leaks and no answer is wrong.

    python benchmarks/soak.py --minutes 30 [--bundle DIR] [--seed 0]
    python benchmarks/soak.py --minutes 2 --leak 1024        (a control: it must fail)

Several callers embed files, good and broken, here and in decoding processes that are killed at random; ask for
sentences and clips, one by one and through a `milnce.Batcher` with deadlines, cancellations and overload; search an
index and stored features; evaluate; load and close further models; and give wrong arguments. Every answer is held to
the one that was computed at the start. Between rounds nothing is at work, and memory, open files, threads, processes,
shared memory and temporary files are counted. Writes benchmarks/results/soak.json, .md and .png. Exits with 1 if an
answer was wrong or something grew, 2 for wrong arguments.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / name) for name in ("benchmarks", "runtime", "convert")]

from harness import RESULTS, Target, write  # noqa: E402 - after the line above
from milnce.errors import MilnceError  # noqa: E402
from soaking.planted import KINDS, Plan  # noqa: E402
from soaking.run import Settings, run  # noqa: E402
from soaking.statistic import LIMITS, MIB  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence

_WRONG_ARGUMENTS = 2
# Samples in the report: enough for the plot of half an hour.
_SAMPLES = 300


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the soak and write its report; returns the exit code."""
    options = _parser().parse_args(arguments)
    if not options.minutes > 0 or options.leak < 0 or options.callers < 1:
        print("Error: --minutes above 0, --leak of at least 0 and --callers of at least 1 expected", file=sys.stderr)
        return _WRONG_ARGUMENTS
    for name in ("milnce", "py.warnings"):  # decoders that were killed are counted, as are unknown words
        logging.getLogger(name).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="milnce-soak-") as name:
        folder = Path(name)
        (folder / "tmp").mkdir()
        # For this process and for those that it starts.
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "tmp")
        settings = Settings(
            folder=folder,
            bundle=options.bundle,
            seconds=60 * options.minutes,
            callers=options.callers,
            seed=options.seed,
            backend=options.backend,
            plan=Plan(options.leak, tuple(options.plant)),
        )
        try:
            report = run(settings, say=lambda line: print(f"  {line}", file=sys.stderr))
        except MilnceError as error:
            print(f"Error: {error}", file=sys.stderr)
            return _WRONG_ARGUMENTS
    report["samples"] = thinned(report["samples"], _SAMPLES)
    report["targets"] = targets(report)
    write("soak", report, results=options.results)
    for what, problem in report["problems"].items():
        print(f"{what}: {problem}", file=sys.stderr)
    return 1 if report["problems"] else 0


def targets(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what the soak was to reach, beside what it did."""
    growth = report["verdicts"].get("rss_bytes")
    counts = [verdict for verdict in report["verdicts"].values() if "after" in verdict]
    return [
        Target("wrong answers and errors", 0, report["failed"], "lower").to_json(),
        Target(
            "memory: maximum less mean of the second half, MiB",
            LIMITS.growth_bytes / MIB,
            growth and growth["growth_bytes"] / MIB,
            "lower",
            bound=report["problems"].get("rss_bytes", "" if growth else "the run was stopped too soon"),
        ).to_json(),
        Target(
            "open files, threads, processes, shared memory, temporary files that were left",
            0,
            sum(max(0, verdict["after"] - verdict["before"]) for verdict in counts) if counts else None,
            "lower",
        ).to_json(),
    ]


def thinned(samples: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """Return at most `most` of the samples, evenly, with the first and the last."""
    if len(samples) <= most:
        return samples
    return [samples[round(index * (len(samples) - 1) / (most - 1))] for index in range(most)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long, at least")
    parser.add_argument("--bundle", type=Path, default=ROOT / "engines" / "demo")
    parser.add_argument("--backend", default="auto", help="as in milnce.load")
    parser.add_argument("--callers", type=int, default=3, help="threads that ask at the same time")
    parser.add_argument("--seed", type=int, default=0, help="decides what is asked, and in which order")
    parser.add_argument("--leak", type=int, default=0, metavar="BYTES_PER_REQUEST", help="plant a leak: it must fail")
    parser.add_argument(
        "--plant", action="append", default=[], choices=KINDS, help="leave one behind a round: it must fail"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
