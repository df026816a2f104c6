"""The tables of the report's page: plans, parity, speed, memory. Each takes the checks of its kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpucheck.record import ABSENT, BAD, LEFT_OUT, MEASURED, PASSED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpucheck.record import Event

# One clip of 32x224x224 at the published width: its operations, as `torch.utils.flop_counter` counts PyTorch's tower,
# and the time of one H200 at FP16 if every layer took the larger of its arithmetic and its memory traffic, counted
# layer by layer from the graph.
FLOP_PER_CLIP = 74.2e9
BOUND_H200_FP16_S = 172e-6
_PATHS = (
    "`run`: uint8 clips on the host to embeddings on the host. `stream`: the same, many batches that overlap. "
    "`on GPU`: inputs and outputs are there. Medians of interleaved rounds; what fails its parity gate has no speed."
)


def plans(found: Sequence[Event]) -> str:
    """Return the plans that were built, and those that were not."""
    if not found:
        return ""
    lines = ["## Plans", "", "| bundle | graph | library | build s | MB | |", "| --- | --- | --- | ---: | ---: | --- |"]
    for check in found:
        data = check["data"]
        graph = " ".join(str(data.get(key, "")) for key in ("module", "form", "precision"))
        figures = f"{_number(data.get('build_s'), '.0f')} | {_number(data.get('bytes'), '.1f', 1e-6)}"
        state = data.get("note", "") if check["outcome"] == PASSED else f"{check['outcome']}: {_cell(check['detail'])}"
        lines.append(f"| {data.get('bundle', '')} | {graph} | {data.get('library', '')} | {figures} | {state} |")
    named = dict.fromkeys(name for check in found for name in check["data"].get("tactic_sources") or ())
    lines += ["", f"Builds choose from these tactic sources alone: {', '.join(named)}."] if named else []
    return "\n".join(lines)


def parity(found: Sequence[Event]) -> str:
    """Return each candidate's worst figures over the buckets and both outputs, and its failures by name."""
    if not found:
        return ""
    heading = "| bundle | backend | precision | input | buckets | 1 - centred cosine | relative | spread | scale | |"
    lines = ["## Parity", "", heading, "| --- | --- | --- | --- | --- | ---: | ---: | ---: | ---: | --- |"]
    groups: dict[tuple[str, ...], list[Event]] = {}
    for check in found:
        data = check["data"]
        key = tuple(str(data.get(name, "")) for name in ("bundle", "backend", "precision", "form"))
        groups.setdefault(key if any(key) else (check["check"], "", "", ""), []).append(check)
    for key, group in groups.items():
        judged = [check for check in group if "bucket" in check["data"]]
        buckets = ", ".join(str(check["data"]["bucket"]) for check in judged)
        agreements = [output for check in judged for output in check["data"].get("outputs", {}).values()]
        figures = [
            _worst(agreements, name) for name in ("centred_cosine", "relative_error", "spread_error", "scale_error")
        ]
        lines.append(f"| {' | '.join(key)} | {buckets} | {' | '.join(figures)} | {_verdict(group)} |")
    return "\n".join(lines)


def peaks(found: Sequence[Event]) -> str:
    """Return what the GPU can do at most, or why that was not measured."""
    if not found:
        return ""
    lines = ["## Peaks", "", "What PyTorch reaches on this GPU: large matrix products, and a copy on the device, which"]
    lines[-1] += " counts what it reads and what it writes."
    lines += ["", "| | a second | of | rounds | spread |", "| --- | ---: | --- | ---: | ---: |"]
    for check in found:
        data = check["data"]
        if check["outcome"] != MEASURED:
            lines.append(f"| {_cell(check['check'])} | | {check['outcome']}: {_cell(check['detail'])} | | |")
            continue
        scale, unit = (1e-9, "GB") if data["of"] == "byte" else (1e-12, "TFLOP")
        figures = f"{data['per_s'] * scale:.4g} | {unit} | {data['rounds']} | {data['spread']:.0%}"
        lines.append(f"| {_cell(check['check'])} | {figures} |")
    return "\n".join(lines)


def latency(found: Sequence[Event]) -> str:
    """Return a table a bundle: for each row and batch size its speed with its parity, or why there is none."""
    if not found:
        return ""
    lines = ["## Speed", "", _PATHS]
    for bundle in dict.fromkeys(check["data"].get("bundle", check["check"]) for check in found):
        lines += ["", f"### {bundle}", ""]
        own = [check for check in found if check["data"].get("bundle", check["check"]) == bundle]
        lines += _speeds(own)
    return "\n".join(lines)


def throughput(found: Sequence[Event]) -> str:
    """Return what many callers and many files get, beside full batches; or why it was not measured."""
    if not found:
        return ""
    lines = ["## Throughput", "", "Full batches of 8 from one caller; 16 callers that wait; files, with decoding.", ""]
    lines += ["| bundle | what | path | clips/s | of full batches | 1 - centred cosine |"]
    lines += ["| --- | --- | --- | ---: | ---: | ---: |"]
    measured = [check["data"] for check in found if check["outcome"] == MEASURED]
    full = {(data["bundle"], data["row"]): data["clips_per_s"] for data in measured if data["path"] == "full batches"}
    for data in measured:
        most = full.get((data["bundle"], data["row"]))
        share = "" if most is None else f"{data['clips_per_s'] / most:.0%}"
        figures = f"{data['clips_per_s']:.0f} | {share} | {_error(data['parity']['centred_cosine'])}"
        lines.append(f"| {data['bundle']} | {data['row']} | {data['path']} | {figures} |")
    refused = [check for check in found if check["outcome"] in (*BAD, ABSENT)]
    return "\n".join([*lines, "", *(f"- no speed: {check['check']}: {_cell(check['detail'])}" for check in refused)])


def memory(found: Sequence[Event]) -> str:
    """Return what memory is free and resident before and after the cycles."""
    if not found:
        return ""
    lines = ["## Memory over load, run and close", ""]
    lines += ["| | cycles | in use MiB | device MiB lost | resident MiB gained | |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | --- |"]
    for check in found:
        data = check["data"]
        if "free_before_bytes" not in data:
            lines.append(f"| {_cell(check['check'])} | | | | | {check['outcome']}: {_cell(check['detail'])} |")
            continue
        lost = (data["free_before_bytes"] - data["free_after_bytes"]) / 2**20
        gained = (data["resident_after_bytes"] - data["resident_before_bytes"]) / 2**20
        name = f"{data['bundle']} {data['backend']} {data['precision']}"
        state = check["outcome"] if check["outcome"] == PASSED else f"{check['outcome']}: {_cell(check['detail'])}"
        used = f"{data['in_use_bytes'] / 2**20:.0f}"
        lines.append(f"| {name} | {data['cycles']} | {used} | {lost:.1f} | {gained:.1f} | {state} |")
    return "\n".join(lines)


def _speeds(found: Sequence[Event]) -> list[str]:
    measured = [check["data"] for check in found if check["outcome"] == MEASURED]
    full = any(data["full"] for data in measured)
    head = ["batch", "what", "path", "ms a batch", "p95 ms", "rounds", "clips/s"]
    head += ["TFLOP/s", "of the bound"] if full else []
    head += ["against PyTorch FP32", "against PyTorch FP16", "1 - centred cosine"]
    lines = [f"| {' | '.join(head)} |", "| ---: | --- | --- |" + " ---: |" * (len(head) - 3)]
    for data in sorted(measured, key=lambda data: data["bucket"]):
        batches = data["clips"] / data["bucket"]
        cells = [str(data["bucket"]), data["row"], data["path"], f"{1e3 * data['median_s'] / batches:.2f}"]
        cells += [f"{1e3 * data['p95_s'] / batches:.2f}", str(data["rounds"]), f"{data['clips_per_s']:.0f}"]
        if full:
            cells += [f"{FLOP_PER_CLIP * data['clips_per_s'] / 1e12:.0f}"]
            cells += [f"{BOUND_H200_FP16_S * data['clips_per_s']:.0%}"]
        cells += [_ratio(data, measured, mode) for mode in ("FP32", "FP16")]
        cells += [_error(data["parity"]["centred_cosine"])]
        lines.append(f"| {' | '.join(cells)} |")
    if full:
        lines += [
            "",
            f"One clip is {FLOP_PER_CLIP / 1e9:.1f} GFLOP. The bound is {BOUND_H200_FP16_S * 1e6:.0f} us a clip",
        ]
        lines[-1] += ", one H200 at FP16 with every layer at the larger of its arithmetic and its memory traffic."
    refused = [check for check in found if check["outcome"] in (*BAD, ABSENT, LEFT_OUT)]
    return [*lines, "", *(f"- no speed: {check['check']}: {_cell(check['detail'])}" for check in refused)]


def _ratio(data: dict[str, Any], measured: Sequence[dict[str, Any]], mode: str) -> str:
    """Return how many times faster this is than eager PyTorch, by the same path or else from host to host."""
    path = "run" if data["path"] == "stream" else data["path"]
    for other in measured:
        if (other["row"], other["bucket"], other["path"]) == (f"PyTorch eager {mode}", data["bucket"], path):
            return f"{data['clips_per_s'] / other['clips_per_s']:.2f}x"
    return ""


def _verdict(group: Sequence[Event]) -> str:
    bad = [check for check in group if check["outcome"] in BAD]
    if not bad:
        return _cell(group[0]["detail"]) if group[0]["outcome"] == ABSENT else PASSED
    return "; ".join(
        f"{check['data'].get('bucket', '')} {check['outcome']}: {_cell(check['detail'])}".strip() for check in bad
    )


def _worst(agreements: Sequence[dict[str, Any]], name: str) -> str:
    values = [agreement[name] for agreement in agreements]
    if not values or any(isinstance(value, str) for value in values):  # NaN is kept as a word
        return "not a number" if values else ""
    return _error(min(values)) if "cosine" in name else f"{max(values):.1e}"


def _error(cosine: float) -> str:
    return f"{1 - cosine:.1e}"


def _number(value: float | None, form: str, scale: float = 1.0) -> str:
    return "" if value is None else format(value * scale, form)


def _cell(text: object) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")
