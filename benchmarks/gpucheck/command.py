"""The command line of the GPU check."""

from __future__ import annotations

import argparse
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpucheck.markdown import render
from gpucheck.record import ABSENT
from gpucheck.report import Report
from gpucheck.runner import BUDGET_S, NAMES, chosen, exit_code, run_parts
from gpucheck.settings import BUCKETS, ROOT, Settings
from harness import RESULTS
from milnce.bundle import Bundle
from milnce.errors import MilnceError
from milnce.machine import describe
from milnce_convert import reference

if TYPE_CHECKING:
    from collections.abc import Sequence

NO_GPU = 2
_INTERRUPTED = 130
_REFERENCE_CLIPS = 32


def main(description: str, arguments: Sequence[str] | None = None) -> int:
    """Run the check, or make a reference file; returns the exit code."""
    options = _parser(description).parse_args(arguments)
    try:
        if options.make_reference is not None:
            return _make_reference(options)
        return _check(options)
    except MilnceError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. What was seen until then is in the report.", file=sys.stderr)
        return _INTERRUPTED


def _parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpu_check.py", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", action="append", default=[], metavar="DIR", help="bundle to check; may be repeated")
    parser.add_argument("--reference", action="append", default=[], metavar="FILE", help="outputs to compare with")
    parser.add_argument("--only", action="append", default=[], choices=NAMES, metavar="PART", help=", ".join(NAMES))
    parser.add_argument("--buckets", type=_sizes, default=BUCKETS, metavar="1,8,32", help="batch sizes")
    parser.add_argument(
        "--budget-s", type=float, default=BUDGET_S, help="seconds in all; parts beyond them are not run"
    )
    parser.add_argument("--bucket-s", type=float, default=Settings.bucket_s, help="seconds of rounds a batch size")
    parser.add_argument(
        "--tactic-source",
        action="append",
        default=[],
        metavar="NAME",
        help="kernels that builds choose from, as trt.TacticSource names them; may be repeated",
    )
    parser.add_argument("--cycles", type=int, default=Settings.cycles, help="load and close cycles")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "gpu-check", help="folder for plans and the like")
    parser.add_argument(
        "--out", type=Path, action="append", default=[], metavar="DIR", help="another folder for the report"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help=argparse.SUPPRESS)
    parser.add_argument("--make-reference", type=Path, default=None, metavar="FILE", help="write a reference and end")
    parser.add_argument("--clips", type=int, default=_REFERENCE_CLIPS, help="clips of a reference")
    return parser


def _sizes(text: str) -> tuple[int, ...]:
    sizes = tuple(sorted({int(part) for part in text.split(",")}))
    if sizes[0] < 1:
        raise argparse.ArgumentTypeError(f"batch sizes are numbers of at least 1; {text} given")
    return sizes


def _make_reference(options: argparse.Namespace) -> int:
    if len(options.bundle) != 1:
        print("Error: --make-reference takes one --bundle DIR", file=sys.stderr)
        return 2
    bundle = Bundle.open(options.bundle[0])
    made = reference.from_onnxruntime(bundle, reference.Recipe.of(bundle, clips=options.clips))
    reference.write(options.make_reference, made)
    size = options.make_reference.stat().st_size
    print(f"{options.make_reference}: {made.recipe.clips} clips of {made.source}, {size / 1000:.0f} kB")
    return 0


def _check(options: argparse.Namespace) -> int:
    settings = Settings(
        work=str(options.work.resolve()),
        bundles=tuple(str(Path(bundle).resolve()) for bundle in options.bundle),
        references=tuple(str(Path(path).resolve()) for path in options.reference),
        buckets=options.buckets,
        clips=options.clips,
        bucket_s=options.bucket_s,
        cycles=options.cycles,
        tactic_sources=tuple(options.tactic_source),
    )
    parts = chosen(options.only)
    results: list[dict[str, Any]] = []
    report: Report | None = None
    for result in run_parts(parts, settings, budget_s=options.budget_s):
        results.append(result)
        if report is None:
            refusal = _refusal(result)
            if refusal is not None:
                print(refusal, file=sys.stderr)
                return NO_GPU
            report = Report(describe(), _gpu_name(result), [options.results, *options.out], datetime.now(timezone.utc))
        waiting = [part.name for part in parts[len(results) :]]
        report.write(results, waiting)
        print(f"{result['name']}: {result['outcome']}, {result.get('seconds', 0):.0f} s", file=sys.stderr)
    if report is None:
        return NO_GPU
    code = exit_code(results)
    document = report.write(results, [], code=code)
    print(render(document))
    print("Report: " + ", ".join(map(str, report.paths)), file=sys.stderr)
    return code


def _refusal(environment: dict[str, Any]) -> str | None:
    """Return why there is no GPU to check, or None if there is one."""
    for check in environment["checks"]:
        if check["kind"] == "part" and check["check"] == "cuda":
            return str(check["detail"]) if check["outcome"] == ABSENT else None
    ends = [check["detail"] for check in environment["checks"] if check["kind"] == "process"]
    return f"the host could not be looked at: {'; '.join(ends) or environment['detail']}"


def _gpu_name(environment: dict[str, Any]) -> str:
    found = [check["data"].get("name", "") for check in environment["checks"] if check["kind"] == "gpu"]
    return found[0] if found and found[0] else "unknown GPU"
