"""The Markdown page of a GPU check, made from the JSON document and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpucheck.record import ABSENT, BAD, ERROR, FAILED, MEASURED, PASSED
from gpucheck.tables import latency, memory, parity, peaks, plans, throughput

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gpucheck.record import Event

_DETAIL = 600


def render(document: dict[str, Any]) -> str:
    """Return the page."""
    sections = [
        _head(document),
        _failures(document),
        _parts(document),
        _host(document),
        _tests(document),
        *(table(list(checks(document, kind))) for kind, table in _TABLES),
        _rtx(document),
    ]
    return "\n\n".join(section.rstrip() for section in sections if section) + "\n"


_TABLES = (
    *(("plan", plans), ("parity", parity), ("peak", peaks), ("latency", latency), ("throughput", throughput)),
    ("memory", memory),
)


def checks(document: dict[str, Any], kind: str) -> Iterator[Event]:
    """Yield the checks of one kind."""
    for part in document["parts"]:
        for check in part["checks"]:
            if check["kind"] == kind:
                yield check


def _head(document: dict[str, Any]) -> str:
    gpu, versions, cudnn = (_data(document, kind) for kind in ("gpu", "versions", "cudnn"))
    host, counts = document["host"], document["counts"]
    capability = ".".join(map(str, gpu.get("compute_capability", ["?"])))
    cuda = ".".join(map(str, gpu.get("driver_cuda", ["?"])))
    packages = ", ".join(f"{name} {number}" for name, number in versions.get("packages", {}).items())
    state = {True: "complete", False: "not finished"}[document["complete"]]
    judged = f"{counts[PASSED]} checks passed, {counts[FAILED]} failed, {counts[ERROR]} ended with an error"
    ending = "" if document["exit_code"] is None else f", exit code {document['exit_code']}"
    gpu_line = (
        f"{document['gpu']}, compute capability {capability}, {_bytes(gpu.get('total_bytes'))}; "
        f"driver {gpu.get('driver')}, which runs CUDA {cuda}; cuDNN {cudnn.get('version')}. "
        f"{host['cpu']}, {host['cores']} cores; Python {host['python']}; {packages}."
    )
    state_line = (
        f"**{judged}**; {counts[MEASURED]} figures were measured, {counts[ABSENT]} checks need what this host lacks. "
        f"The run is {state}{ending}."
    )
    lines = [
        f"# GPU check: {document['gpu']}",
        state_line,
        f"{document['began']}, commit {host['commit']}, `{host['command']}`",
        gpu_line,
    ]
    return "\n\n".join(lines)


def _data(document: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return the figures of the first check of a kind; empty if there is none."""
    found = next(checks(document, kind), None)
    return {} if found is None else dict(found["data"])


def _failures(document: dict[str, Any]) -> str:
    lines = [
        f"- {part['name']}: {check['check']}: {_short(check['detail'])}"
        for part in document["parts"]
        for check in part["checks"]
        if check["outcome"] in BAD
    ]
    return "\n".join(["## What failed", "", *lines]) if lines else ""


def _parts(document: dict[str, Any]) -> str:
    lines = ["## Parts", "", "| part | outcome | s | |", "| --- | --- | ---: | --- |"]
    lines += [
        f"| {part['name']} | {part['outcome']} | {part.get('seconds', '')} | {_cell(part['detail'])} |"
        for part in document["parts"]
    ]
    lines += [f"| {name} | not run yet | | |" for name in document["waiting"]]
    return "\n".join(lines)


def _host(document: dict[str, Any]) -> str:
    lines = ["## What this host has", "", "| | version | |", "| --- | --- | --- |"]
    for check in checks(document, "part"):
        state = "present" if check["outcome"] == PASSED else f"absent: {_cell(check['detail'])}"
        lines.append(f"| {check['check']} | {check['data'].get('version') or ''} | {state} |")
    for check in checks(document, "bundle"):
        data = check["data"]
        if check["outcome"] == PASSED:
            text = f"compared with {data['clips']} clips of {data['reference']}"
        else:
            text = f"{check['outcome']}: {_cell(check['detail'])}"
        lines.append(f"| bundle {check['check']} | {str(data.get('digest', ''))[:12]} | {text} |")
    return "\n".join(lines)


def _tests(document: dict[str, Any]) -> str:
    tests = list(checks(document, "test"))
    judged = list(checks(document, "tests"))
    if not tests and not judged:
        return ""
    lines = ["## tests/gpu", ""]
    if tests:
        counted = {outcome: sum(test["outcome"] == outcome for test in tests) for outcome in (PASSED, *BAD, ABSENT)}
        lines.append(", ".join(f"{count} {outcome}" for outcome, count in counted.items() if count) + ".")
    by_reason: dict[str, int] = {}
    for test in tests:
        if test["outcome"] == ABSENT:
            by_reason[test["detail"]] = by_reason.get(test["detail"], 0) + 1
    lines += [f"- {count} need {_short(reason)}" for reason, count in sorted(by_reason.items())]
    for check in judged:
        text = f"{check['data']['count']} passed" if "count" in check["data"] else _short(check["detail"])
        lines.append(f"- {check['check']}: {text}")
    return "\n".join(lines)


def _rtx(document: dict[str, Any]) -> str:
    lines = [f"- {check['check']}: {check['outcome']}. {_short(check['detail'])}" for check in checks(document, "rtx")]
    return "\n".join(["## TensorRT-RTX on this GPU", "", *lines]) if lines else ""


def _short(text: str) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= _DETAIL else f"{line[:_DETAIL]}..."


def _cell(text: str) -> str:
    return _short(text).replace("|", "\\|")


def _bytes(count: int | None) -> str:
    return "memory unknown" if count is None else f"{count / 2**30:.1f} GiB"
