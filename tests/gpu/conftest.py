"""What the tests on a GPU share: the device, a bundle, plans of it, and its graphs on each backend that is here.

MILNCE_GPU_BUNDLE names another bundle than the committed demo, MILNCE_GPU_PLANS a folder where its plans are kept,
MILNCE_GPU_TACTIC_SOURCES what plans are built with, as trt.TacticSource names it, separated by commas: a TensorRT 8.5
without cuDNN and cuBLAS needs "EDGE_MASK_CONVOLUTIONS,JIT_CONVOLUTIONS".
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import milnce
from helpers import gpu_models, gpu_plugin
from helpers.gpu_models import build
from milnce.bundle import Bundle
from milnce.cuda import Cuda
from milnce_convert.reference import Recipe, Reference, from_onnxruntime, read

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from helpers.gpu_models import Opener

ROOT = Path(__file__).parents[2]
BUNDLE, PLANS = "MILNCE_GPU_BUNDLE", "MILNCE_GPU_PLANS"
MOST_CLIPS = 70

# pytest takes its hooks from a conftest's names.
globals().update({name: getattr(gpu_plugin, name) for name in gpu_plugin.__all__})


@pytest.fixture
def cuda() -> Cuda:
    return Cuda()


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    return Bundle.open(os.environ.get(BUNDLE, ROOT / "engines" / "demo"))


@pytest.fixture(scope="session")
def expected(bundle: Bundle) -> Reference:
    """Return the outputs of the FP32 graphs on a CPU: the committed ones, or for another bundle made here."""
    if BUNDLE not in os.environ:
        return read(ROOT / "benchmarks" / "references" / "demo.npz")
    return from_onnxruntime(bundle, Recipe.of(bundle, clips=MOST_CLIPS))


@pytest.fixture(scope="session")
def clips(expected: Reference) -> NDArray[np.uint8]:
    """Return 70 clips of the size the bundle samples."""
    return expected.make_clips()


@pytest.fixture(scope="session")
def plans(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of plans of both towers, built here by tensorrt, or those of an earlier run that still fit."""
    folder = Path(os.environ[PLANS]) if PLANS in os.environ else tmp_path_factory.mktemp("tensorrt") / "plans"
    build(bundle, folder)
    return folder


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.needs(name)) for name in ("tensorrt", "onnxruntime")])
def backend_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def opened(request: pytest.FixtureRequest, backend_name: str, bundle: Bundle) -> Opener:
    """Return what opens a graph in the backend that this turn of the test is about."""
    plans: Path | None = request.getfixturevalue("plans") if backend_name == "tensorrt" else None
    return partial(gpu_models.opened, bundle, backend_name, plans)


@pytest.fixture
def model(request: pytest.FixtureRequest, backend_name: str, bundle: Bundle) -> Iterator[milnce.Model]:
    """Return the bundle's model in the backend that this turn of the test is about."""
    plans: Path | None = request.getfixturevalue("plans") if backend_name == "tensorrt" else None
    with milnce.load(bundle.path, backend=backend_name, device="cuda", plans=plans) as loaded:
        yield loaded
