"""Peaks of the GPU check: what was measured, in its unit, and what could not be."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import peaks
from gpucheck import limits, tables
from gpucheck.record import ABSENT, FAILED, MEASURED
from helpers.gpu_events import events_of

if TYPE_CHECKING:
    import pytest

    from gpucheck.settings import Settings


def test_peaks_are_measured_in_their_units(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[str] = []
    product = replace(peaks.numpy_product(64), wait=lambda: waited.append("product"))
    memory, _ = peaks.copies(1, 1 << 16)

    def broken() -> None:
        raise RuntimeError("CUDA error")

    tops = [product, replace(memory, amount=1.0), replace(product, name="broken product", call=broken)]
    monkeypatch.setattr(peaks, "gpu_peaks", lambda: tops)
    events = {
        event["check"]: event for event in events_of(limits.run, replace(settings, least_rounds=2, most_rounds=2))
    }
    measured, copied, failed = (events[top.key] for top in tops)
    assert (measured["outcome"], measured["data"]["of"], measured["data"]["rounds"]) == (MEASURED, "FLOP", 2)
    assert measured["data"]["per_s"] > 1e6
    assert (copied["outcome"], copied["data"]["of"]) == (MEASURED, "byte")
    assert copied["data"]["per_s"] < 1e6  # of its one byte
    assert (failed["outcome"], "CUDA error" in failed["detail"]) == (FAILED, True)
    assert len(waited) >= 2  # for the device, in every round


def test_the_table_scales_and_tells_what_is_missing() -> None:
    common = {"kind": "peak", "detail": "", "outcome": MEASURED}
    events = [
        {**common, "check": "product fp16", "data": {"per_s": 7.5e14, "of": "FLOP", "rounds": 9, "spread": 0.02}},
        {**common, "check": "copy", "data": {"per_s": 3.9e12, "of": "byte", "rounds": 9, "spread": 0.01}},
        {**common, "check": "product tf32", "outcome": FAILED, "detail": "no | memory", "data": {}},
    ]
    page = tables.peaks(events)
    assert "| product fp16 | 750 | TFLOP | 9 | 2% |" in page
    assert "| copy | 3900 | GB | 9 | 1% |" in page
    assert "| product tf32 | | failed: no \\| memory | | |" in page
    assert tables.peaks([]) == ""


def test_without_pytorch_on_a_gpu_there_are_none(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peaks, "gpu_peaks", list)
    (event,) = events_of(limits.run, settings)
    assert (event["kind"], event["outcome"]) == ("peak", ABSENT)
    assert "| peaks | | absent: PyTorch measures them" in tables.peaks([event])
