"""TensorRT-RTX is not made for every GPU: it gives the right numbers, or milnce says in words why it does not run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import milnce
from helpers.gpu_models import builder_settings
from milnce.errors import BackendUnavailableError, PlanError
from milnce_convert.parity import FP32_GATE, compare, require
from milnce_convert.plan import PlanOptions, build_plans
from milnce_convert.plan_module import choose_toolkit

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from milnce.bundle import Bundle
    from milnce_convert.reference import Reference


@pytest.mark.needs("tensorrt_rtx")
def test_its_plans_run_or_are_refused_in_words(
    bundle: Bundle, tmp_path: Path, expected: Reference, clips: NDArray[np.uint8]
) -> None:
    options = PlanOptions(modules=("video",), precisions=("fp32",), settings=builder_settings())
    build_plans(bundle, tmp_path / "plans", options, toolkit=choose_toolkit("tensorrt_rtx"))
    try:
        model = milnce.load(bundle.path, backend="tensorrt", plans=tmp_path / "plans", modules=("video",))
    except (BackendUnavailableError, PlanError) as error:
        assert "compute capability" in str(error)  # noqa: PT017 - one of two right answers
        return
    with model:
        found = model.encode_video(clips).embedding
    require(compare(expected.outputs["video_embedding"], found), FP32_GATE, "tensorrt_rtx")
