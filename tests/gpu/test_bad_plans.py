"""Real plans, damaged: cut at 16 places, a bit turned at 64, no sidecar, another GPU's. None is deserialised."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import pytest

from helpers import gpu_models
from milnce.errors import BackendUnavailableError, PlanError
from milnce.plans import find_plan, installed_libraries, sidecars

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from milnce.bundle import Bundle
    from milnce.cuda import Cuda
    from milnce_convert.reference import Reference

pytestmark = pytest.mark.needs("tensorrt")


@pytest.fixture
def copy(plans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the plans, in a process that fails if one is deserialised."""

    def deserialise(*_: object, **__: object) -> NoReturn:
        raise AssertionError("a damaged plan reached TensorRT")

    monkeypatch.setattr("milnce.backends.tensorrt.Engine", deserialise)
    shutil.copytree(plans, tmp_path / "plans")
    (tmp_path / "plans").chmod(0o700)
    return tmp_path / "plans"


def video_plan(folder: Path) -> Path:
    (plan,) = [plan for plan in sidecars(folder)[0] if plan.module == "video"]
    return folder / plan.file


def open_plan(bundle: Bundle, folder: Path) -> None:
    with gpu_models.opened(bundle, "tensorrt", folder):
        pass


def test_a_plan_cut_anywhere_is_refused(bundle: Bundle, copy: Path) -> None:
    path = video_plan(copy)
    whole = path.read_bytes()
    for place in np.linspace(0, len(whole) - 1, 16).astype(int):
        path.write_bytes(whole[:place])
        with pytest.raises(PlanError, match=path.name):
            open_plan(bundle, copy)


def test_a_plan_with_one_bit_turned_is_refused(bundle: Bundle, copy: Path) -> None:
    path = video_plan(copy)
    whole = path.read_bytes()
    for turn, place in enumerate(np.linspace(0, len(whole) - 1, 64).astype(int)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << turn % 8
        path.write_bytes(damaged)
        with pytest.raises(PlanError, match="sha256"):
            open_plan(bundle, copy)


def test_the_whole_plan_would_have_been_deserialised(bundle: Bundle, copy: Path) -> None:
    with pytest.raises(AssertionError, match="a damaged plan reached TensorRT"):
        open_plan(bundle, copy)


def test_a_plan_without_its_sidecar_or_in_an_open_folder_is_refused(bundle: Bundle, copy: Path) -> None:
    copy.chmod(0o777)
    with pytest.raises((PlanError, BackendUnavailableError), match=r"writable|0700|chmod"):
        open_plan(bundle, copy)
    copy.chmod(0o700)
    video_plan(copy).with_name(video_plan(copy).name + ".json").unlink()
    with pytest.raises((PlanError, BackendUnavailableError), match="milnce build"):
        open_plan(bundle, copy)


def test_a_plan_for_another_gpu_or_version_is_named(bundle: Bundle, plans: Path, cuda: Cuda) -> None:
    graph = bundle.graph("video", input_form="uint8")
    libraries = [library for library in installed_libraries() if library.name == "tensorrt"]
    find_plan(plans, graph, cuda.info, libraries)
    other = replace(cuda.info, name="Another GPU", compute_capability=(5, 0))
    with pytest.raises(PlanError, match=r"Another GPU \(compute capability 5\.0\)"):
        find_plan(plans, graph, other, libraries)
    newer = [replace(library, version="99.0.0.1") for library in libraries]
    with pytest.raises(PlanError, match=r"tensorrt 99\.0\.0\.1 is installed"):
        find_plan(plans, graph, cuda.info, newer)


def test_good_plans_still_run_after_all_that(
    bundle: Bundle, plans: Path, expected: Reference, clips: NDArray[np.uint8]
) -> None:
    with gpu_models.opened(bundle, "tensorrt", plans) as backend:
        found = backend.run({"video": clips[:2]})["video_embedding"]
    wanted = expected.outputs["video_embedding"][:2]
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())
