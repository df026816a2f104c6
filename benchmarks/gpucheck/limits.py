"""The part that measures what the GPU can do at most, beside which the speeds of the latency part are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import peaks
from gpucheck.record import ABSENT, FAILED, MEASURED
from milnce.timing import interleaved

if TYPE_CHECKING:
    from gpucheck.record import Recorder
    from gpucheck.settings import Settings


def run(settings: Settings, record: Recorder) -> None:
    """Time matrix products in each precision, and a copy on the device, in interleaved rounds."""
    with record.guarded("peak", "peaks"):
        tops = {top.key: top for top in peaks.gpu_peaks()}
        if not tops:
            record.add("peak", "peaks", ABSENT, "PyTorch measures them, and it is not on this host or sees no GPU")
            return
        times, errors = interleaved(
            {key: top.call for key, top in tops.items()},
            rounds=settings.most_rounds,
            seconds=settings.bucket_s,
            least=settings.least_rounds,
            synchronize={key: top.wait for key, top in tops.items() if top.wait is not None},
        )
        for key, error in errors.items():
            record.add("peak", key, FAILED, error)
        for key, timing in times.items():
            top, figures = tops[key], timing.to_json()
            rate: dict[str, Any] = {"per_s": top.amount / timing.median_s}
            rate["of"] = "byte" if top.kind == "memory" else "FLOP"
            record.add("peak", key, MEASURED, **rate, rounds=figures["rounds"], spread=figures["spread"])
