"""Which plan fits a GPU, a version and a graph, and what is said of those that do not."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from helpers.rtx import require_rtx
from helpers.sidecars import (
    B200,
    DATA,
    H100,
    H200,
    L4,
    RTX,
    RTX_FIELDS,
    T4,
    TENSORRT,
    make_sidecar,
    video_profiles,
)
from milnce.bundle import Bundle
from milnce.errors import PlanError
from milnce.plan_folder import make_folder
from milnce.plans import (
    Library,
    PlanProfile,
    build_command,
    find_plan,
    installed_libraries,
    library_problems,
    own_item_shapes,
    write_plan,
)

if TYPE_CHECKING:
    from pathlib import Path

    from helpers.tiny_bundle import Tiny
    from milnce.cuda import GpuInfo
    from milnce.manifest import GraphFile
    from milnce.plans import Plan


@pytest.fixture(scope="session")
def graph(tiny: Tiny) -> GraphFile:
    """Return the FP16 video graph of the tiny bundle."""
    return Bundle.open(tiny.path).graph("video", precision="fp16")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return where this test's plans go."""
    return tmp_path / "plans"


def refusal(folder: Path, graph: GraphFile, gpu: GpuInfo = H200, libraries: tuple[Library, ...] = (TENSORRT,)) -> str:
    with pytest.raises(PlanError) as caught:
        find_plan(folder, graph, gpu, libraries)
    return str(caught.value)


def test_the_plan_for_this_graph_gpu_and_version_is_found(graph: GraphFile, folder: Path) -> None:
    plan = write_plan(folder, DATA, make_sidecar(graph))
    write_plan(folder, DATA, make_sidecar(graph, **RTX_FIELDS))
    write_plan(folder, DATA, make_sidecar(graph, precision="fp32"))
    assert find_plan(folder, graph, H200, [TENSORRT]) == (plan, TENSORRT)


def test_of_several_the_preferred_library_the_tuned_plan_and_the_newest_win(graph: GraphFile, folder: Path) -> None:
    rtx = write_plan(folder, DATA, make_sidecar(graph, **RTX_FIELDS))
    fields: dict[str, Any] = {"gpu": "NVIDIA L4", "compute_capabilities": ("8.9",)}
    portable = write_plan(folder, DATA, make_sidecar(graph, **{**fields, "hardware_compatibility": "ampere-plus"}))
    for_any_version = write_plan(folder, DATA, make_sidecar(graph, **fields, version_compatible=True))
    assert find_plan(folder, graph, L4, [TENSORRT, RTX])[0] == portable
    assert find_plan(folder, graph, L4, [RTX, TENSORRT])[0] == rtx
    old = write_plan(folder, DATA, make_sidecar(graph, **fields, date="2026-01-01"))
    new = write_plan(folder, DATA, make_sidecar(graph, **fields, date="2026-02-01", profiles=video_profiles(8)))
    assert find_plan(folder, graph, L4, [TENSORRT, RTX])[0] == new
    (folder / f"{new.file}.json").unlink()
    assert find_plan(folder, graph, L4, [TENSORRT, RTX])[0] == old
    for plan in (old, portable):
        (folder / f"{plan.file}.json").unlink()
    assert find_plan(folder, graph, L4, [TENSORRT, RTX])[0] == for_any_version


def test_a_plan_in_tf32_is_taken_only_if_no_other_fits(graph: GraphFile, folder: Path) -> None:
    rounded: dict[str, Any] = {"options": {"settings": {"tf32": True}}}
    newer = write_plan(folder, DATA, make_sidecar(graph, **rounded, date="2027", profiles=video_profiles(64)))
    assert find_plan(folder, graph, H200, [TENSORRT])[0] == newer
    exact = write_plan(folder, DATA, make_sidecar(graph, hardware_compatibility="ampere-plus", date="2025"))
    assert find_plan(folder, graph, H200, [TENSORRT])[0] == exact


def test_the_bundles_own_sizes_then_the_largest_batch_then_the_date_decide(
    tiny: Tiny, graph: GraphFile, folder: Path
) -> None:
    own = own_item_shapes(graph, Bundle.open(tiny.path).manifest)
    (shape,) = own.values()

    def write(batch: int, date: str, *item: int) -> Plan:
        profiles = (PlanProfile({"video": ((batch, *item),) * 3}),)
        return write_plan(folder, DATA, make_sidecar(graph, profiles=profiles, date=date))

    write(64, "2028", 4, 48, 48, 3)
    ranged = (PlanProfile({"video": ((1, 4, 16, 16, 3), (1, *shape), (2, 32, 64, 64, 3))}),)
    taken = [write_plan(folder, DATA, make_sidecar(graph, profiles=ranged, date="2025"))]
    taken.append(write(4, "2026", *shape))
    taken.append(write(8, "2024", *shape))

    def found(**options: Any) -> Plan:  # noqa: ANN401 - of find_plan
        return find_plan(folder, graph, H200, [TENSORRT], **options)[0]

    assert found().profiles[0].shapes["video"][2] == (64, 4, 48, 48, 3)
    assert found(item_shapes=own) == taken[2]
    for plan, next_best in ((taken[2], taken[1]), (taken[1], taken[0])):
        (folder / f"{plan.file}.json").unlink()
        assert found(item_shapes=own) == next_best
    again = write(2, "2027", *shape)
    assert found(item_shapes=own) == again


def test_a_bundles_own_sizes_of_every_input(tiny: Tiny) -> None:
    bundle = Bundle.open(tiny.path)
    frames, size = bundle.manifest.sampling["frames"], bundle.manifest.sampling["size"]
    shapes = {
        (graph.module, graph.input_form): own_item_shapes(graph, bundle.manifest) for graph in bundle.manifest.graphs
    }
    assert shapes == {
        ("video", "uint8"): {"video": (frames, size, size, 3)},
        ("video", "float32"): {"video": (3, frames, size, size)},
        ("text", "tokens"): {"tokens": (bundle.manifest.vocabulary.max_words,)},
        ("projection", "mixed_5c"): {"mixed_5c": (12,)},
    }


def test_no_folder_says_how_to_build(graph: GraphFile, tmp_path: Path) -> None:
    folder = tmp_path / "my bundle" / "plans"
    folder.parent.mkdir()
    (folder.parent / "manifest.json").touch()
    command = f"milnce build '{tmp_path}/my bundle'"
    assert refusal(folder, graph) == f"there are no plans at {folder}; build them: {command}"
    assert refusal(folder, graph, libraries=()) == (
        f'no TensorRT library is installed: pip install "milnce[tensorrt]"; then: {command}'
    )


def test_the_command_builds_this_very_graph(tiny: Tiny, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny.path)
    own, other = bundle.path / "plans", tmp_path / "elsewhere"
    here = f"milnce build {bundle.path}"
    assert build_command(own, bundle.graph("video", precision="fp16")) == here
    wanted = bundle.graph("video", input_form="float32")
    assert build_command(own, wanted) == f"{here} --input-form float32 --precision fp32"
    assert build_command(other, bundle.graph("text")) == f"milnce build BUNDLE --plans {other} --precision fp32"
    assert build_command(own, bundle.graph("projection")) == here
    assert build_command(other, bundle.graph("projection"), bundle=bundle.path) == f"{here} --plans {other}"
    assert build_command(own, bundle.graph("projection"), bundle=bundle.path, gpu=1) == f"{here} --gpu 1"
    # Its name alone says nothing.
    stray = tmp_path / "plans"
    assert build_command(stray, bundle.graph("projection")) == f"milnce build BUNDLE --plans {stray}"


def test_the_command_names_the_bundle_that_is_given_and_the_gpu(tiny: Tiny, tmp_path: Path) -> None:
    graph = Bundle.open(tiny.path).graph("video", precision="fp16")
    second = replace(H200, index=1)
    said = f"milnce build {tiny.path} --plans {tmp_path}/plans --gpu 1"
    with pytest.raises(PlanError, match=re.escape(f"build them: {said}") + "$"):
        find_plan(tmp_path / "plans", graph, second, [TENSORRT], bundle=tiny.path)
    make_folder(tmp_path / "plans")
    with pytest.raises(PlanError, match=re.escape(f"Build one: {said}") + "$"):
        find_plan(tmp_path / "plans", graph, second, [TENSORRT], bundle=tiny.path)


def test_every_candidate_is_named_with_what_differs(graph: GraphFile, folder: Path) -> None:
    plans = [
        write_plan(folder, DATA, make_sidecar(graph, onnx_sha256="e" * 64)),
        write_plan(folder, DATA, make_sidecar(graph, library_version="10.13.3.9")),
        write_plan(folder, DATA, make_sidecar(graph, gpu="NVIDIA H100 80GB HBM3")),
        write_plan(folder, DATA, make_sidecar(graph, gpu="NVIDIA L4", compute_capabilities=("8.9",))),
        write_plan(folder, DATA, make_sidecar(graph, **RTX_FIELDS)),
    ]
    write_plan(folder, DATA, make_sidecar(graph, precision="fp32"))
    (folder / "lost.plan").write_bytes(DATA)
    (folder / "broken.plan").write_bytes(DATA)
    (folder / "broken.plan.json").write_text("{}")
    (folder / "note.txt").write_text("no plan")
    (folder / ".hidden.plan").write_bytes(DATA)
    text = refusal(folder, graph, libraries=(TENSORRT,))
    assert text.splitlines()[0] == (
        f"no plan in {folder} runs video uint8 fp16 (video-uint8-fp16.onnx) on NVIDIA H200 (compute capability 9.0) "
        f"with tensorrt 11.1.0.106; it holds plans of: video uint8 fp16, video uint8 fp32. "
        f"Build one: milnce build BUNDLE --plans {folder}"
    )
    assert set(text.splitlines()[1:]) == {
        (
            f"  - {plans[0].file}: it was built from another video-uint8-fp16.onnx (sha256 eeeeeeeeeeee..., "
            f"the bundle's is {graph.sha256[:12]}...)"
        ),
        (
            f"  - {plans[1].file}: tensorrt 10.13.3.9 built it, and tensorrt 11.1.0.106 is installed; "
            "a plan runs on its exact version"
        ),
        f"  - {plans[2].file}: it is for NVIDIA H100 80GB HBM3; this is NVIDIA H200 (compute capability 9.0)",
        f"  - {plans[3].file}: it is for compute capability 8.9; this is NVIDIA H200 (compute capability 9.0)",
        f"  - {plans[4].file}: tensorrt_rtx 1.7.1.116 built it, and tensorrt 11.1.0.106 cannot run it",
        "  - lost.plan: it has no sidecar lost.plan.json, so it is never loaded",
        f"  - {folder}/broken.plan.json: format is None; 'milnce-plan' expected, so this is no sidecar of a plan",
    }


def test_an_empty_folder_holds_plans_of_none(graph: GraphFile, folder: Path) -> None:
    make_folder(folder)
    assert "; it holds plans of: none. Build one: milnce build " in refusal(folder, graph)


@pytest.mark.parametrize(
    ("changes", "gpu", "library", "said"),
    [
        # TensorRT's own plans: the GPU model, the compute capability, or Ampere and newer.
        ({}, H200, TENSORRT, None),
        ({}, H100, TENSORRT, "it is for NVIDIA H200; this is NVIDIA H100 80GB HBM3"),
        ({"hardware_compatibility": "same-compute-capability"}, H100, TENSORRT, None),
        ({"hardware_compatibility": "same-compute-capability"}, L4, TENSORRT, "it is for compute capability 9.0; this"),
        ({"hardware_compatibility": "ampere-plus"}, B200, TENSORRT, None),
        ({"hardware_compatibility": "ampere-plus"}, L4, TENSORRT, None),
        (
            {"hardware_compatibility": "ampere-plus"},
            T4,
            TENSORRT,
            "capability 8.0 and newer; this is Tesla T4",
        ),
        # Versions.
        ({}, H200, Library("tensorrt", "11.1.0.107"), "a plan runs on its exact version"),
        ({"version_compatible": True}, H200, Library("tensorrt", "11.4.0.1"), None),
        ({"version_compatible": True}, H200, Library("tensorrt", "11.0.0.1"), "on the same version or a newer one"),
        ({"version_compatible": True, "library_version": "10.13.3.9"}, H200, TENSORRT, None),
        ({"version_compatible": True, "library_version": "8.6.1"}, H200, Library("tensorrt", "10.0.1"), None),
        (
            {"version_compatible": True, "library_version": "8.6.1"},
            H200,
            TENSORRT,
            "of version 8 does not run on",
        ),
        (
            {"version_compatible": True, "library_version": "9.3"},
            H200,
            TENSORRT,
            "of version 9 does not run on",
        ),
        # tensorrt_lean runs version-compatible plans alone.
        (
            {},
            H200,
            Library("tensorrt_lean", "11.1.0.106"),
            "which runs version-compatible plans only",
        ),
        ({"version_compatible": True}, H200, Library("tensorrt_lean", "11.1.0.106"), None),
        (
            {"version_compatible": True},
            H200,
            Library("tensorrt_lean", "11.0.0.1"),
            "on the same version or a newer one",
        ),
        ({"version_compatible": True}, H200, Library("tensorrt_lean", "11.4.1.0"), None),
        # TensorRT-RTX: its exact version, any GPU of the capabilities it was built for, and never H100 or H200.
        (RTX_FIELDS, L4, RTX, None),
        (
            RTX_FIELDS,
            L4,
            Library("tensorrt_rtx", "1.8.0.1"),
            "built it, and tensorrt_rtx 1.8.0.1",
        ),
        (RTX_FIELDS, H200, RTX, "it is for compute capability 8.0, 8.6, 8.9, 12.0, 12.1; this is NVIDIA H200"),
        (RTX_FIELDS, L4, TENSORRT, "and tensorrt 11.1.0.106 cannot run it"),
        ({}, H200, RTX, "tensorrt 11.1.0.106 built it, and tensorrt_rtx 1.7.1.116 cannot run it"),
    ],
)
def test_where_a_plan_runs(
    changes: dict[str, Any], gpu: GpuInfo, library: Library, said: str | None, graph: GraphFile, folder: Path
) -> None:
    plan = write_plan(folder, DATA, make_sidecar(graph, **changes))
    if said is None:
        assert find_plan(folder, graph, gpu, [library]) == (plan, library)
    else:
        assert said in refusal(folder, graph, gpu, (library,))


def test_a_plan_for_two_libraries_names_both_reasons(graph: GraphFile, folder: Path) -> None:
    write_plan(folder, DATA, make_sidecar(graph, library_version="10.13.3.9"))
    text = refusal(folder, graph, libraries=(TENSORRT, Library("tensorrt_lean", "11.1.0.106")))
    assert len(text.splitlines()) == 3


def test_installed_libraries_are_imported_and_broken_ones_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("tensorrt", "tensorrt_lean", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    assert installed_libraries() == ()
    lean = ModuleType("tensorrt_lean")
    vars(lean)["__version__"] = "11.1.0.106"
    monkeypatch.setitem(sys.modules, "tensorrt_lean", lean)
    monkeypatch.delitem(sys.modules, "tensorrt")
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.11: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert installed_libraries() == (Library("tensorrt_lean", "11.1.0.106"),)
    assert (
        "tensorrt is installed but does not load (libnvinfer.so.11: cannot open shared object file); reinstall it: "
        'pip install "milnce[tensorrt]"'
    ) in library_problems()


@pytest.mark.parametrize("cause", ["from error", ""])
def test_ctrl_c_while_a_library_is_imported_is_no_broken_installation(
    cause: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("tensorrt_lean", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    (tmp_path / "tensorrt.py").write_text(
        "try:\n"
        "    try:\n"
        "        raise KeyboardInterrupt\n"
        "    except KeyboardInterrupt as error:\n"
        "        raise SystemError('initialization failed') from error\n"
        "except SystemError as error:\n"
        f"    raise ImportError('initialization failed') {cause}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        installed_libraries()
    with pytest.raises(KeyboardInterrupt):
        library_problems()
    (tmp_path / "tensorrt_lean.py").write_text("raise ImportError('initialization failed') from KeyboardInterrupt()\n")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.delitem(sys.modules, "tensorrt_lean")
    with pytest.raises(KeyboardInterrupt):
        installed_libraries()


def test_the_installed_tensorrt_rtx_is_found() -> None:
    module = require_rtx()
    assert Library("tensorrt_rtx", module.__version__) in installed_libraries()
    assert not [problem for problem in library_problems() if problem.startswith("tensorrt_rtx")]


def test_where_tensorrt_rtx_is_required_its_absence_fails_and_elsewhere_skips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setenv("MILNCE_REQUIRE_RTX", "1")
    with pytest.raises(pytest.fail.Exception, match="MILNCE_REQUIRE_RTX=1, but tensorrt_rtx does not load"):
        require_rtx()
    monkeypatch.delenv("MILNCE_REQUIRE_RTX")
    with pytest.raises(pytest.skip.Exception, match="tensorrt_rtx does not load"):
        require_rtx()
