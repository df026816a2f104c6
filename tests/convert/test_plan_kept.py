"""Which plans are kept and which built anew, what lies beside them, and that they are found and run afterwards."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from helpers import fake_builder, fake_cuda, fake_tensorrt
from helpers.fake_cuda import FakeGpu
from helpers.sidecars import names_in
from helpers.tiny_bundle import tiny_clips
from milnce.backends.tensorrt import open_graph
from milnce.errors import BundleError, MilnceWarning, OutputError, PlanBuildError, PlanError
from milnce.plans import find_plan, sidecars
from milnce_convert.plan import PlanOptions, build_plans
from milnce_convert.plan_module import choose_toolkit
from milnce_convert.plan_profiles import PlanSizes, Span
from milnce_convert.plan_settings import BuilderSettings

if TYPE_CHECKING:
    from pathlib import Path

    from helpers.fake_builder import FakeBuilder
    from helpers.fake_cuda import FakeCuda
    from helpers.tiny_bundle import TinyWeights
    from milnce.bundle import Bundle
    from milnce_convert.plan_module import Toolkit

ONE = PlanSizes(batch=(Span.fixed(1),), text_batch=(Span.fixed(1),))


def test_a_plan_that_is_there_is_kept_until_something_differs(
    bundle: Bundle, tensorrt: tuple[FakeBuilder, FakeCuda]
) -> None:
    fake, _ = tensorrt

    def build(**changes: Any) -> tuple[bool, int]:  # noqa: ANN401 - fields of PlanOptions
        before = len(fake.configs)
        (item,) = build_plans(bundle, options=PlanOptions(("text",), **{"sizes": ONE, **changes}))
        return item.kept, len(fake.configs) - before

    assert build() == (False, 1)
    assert build() == (True, 0)
    assert build(force=True) == (False, 1)
    assert build(settings=BuilderSettings(optimization_level=5)) == (False, 1)
    assert build() == (False, 1)  # the same name, built with more effort
    assert build(settings=BuilderSettings(tf32=True)) == (False, 1)
    assert build() == (True, 0)  # TF32 has a name of its own
    assert build(sizes=PlanSizes(text_batch=(Span(1, 1, 1),))) == (True, 0)
    assert build(sizes=PlanSizes(text_batch=(Span(1, 2),))) == (False, 1)
    assert build() == (True, 0)
    path = next(path for path in (bundle.path / "plans").iterdir() if path.name.endswith("-fp16-text-tokens-1x16.plan"))
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert build() == (False, 1)
    path.with_name(f"{path.name}.json").unlink()
    assert build() == (False, 1)


def test_a_plan_of_another_export_gpu_or_version_is_built_anew(
    bundle: Bundle, tensorrt: tuple[FakeBuilder, FakeCuda], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, cuda = tensorrt
    options = PlanOptions(("text",), sizes=ONE)
    (first,) = build_plans(bundle, options=options)
    plan = first.plan
    assert (plan.gpu, plan.compute_capabilities, plan.driver) == ("NVIDIA H200", ("9.0",), "13.0")
    changed = bundle.path / "plans" / f"{plan.file}.json"
    for field, value in (("onnx_sha256", "1" * 64), ("gpu", "NVIDIA H100"), ("library_version", "10.0")):
        changed.write_text(json.dumps({**plan.to_json(), field: value}))
        assert not build_plans(bundle, options=options)[0].kept
    changed.write_text(json.dumps({**plan.to_json(), "driver": "12.0", "build_s": 9, "date": "x"}))
    assert build_plans(bundle, options=options)[0].kept
    newer = fake_tensorrt.install(monkeypatch, cuda, "tensorrt", version="11.2.0.1")
    fake_builder.add(newer, "11")
    assert not build_plans(bundle, options=options)[0].kept
    other = fake_cuda.install(monkeypatch, gpus=[FakeGpu(name="NVIDIA H100")])
    fake_builder.add(fake_tensorrt.install(monkeypatch, other, "tensorrt", version="11.2.0.1"), "11")
    assert not build_plans(bundle, options=options)[0].kept
    # Other machines can share the folder: a version and a GPU model have names of their own.
    assert len(sidecars(bundle.path / "plans")[0]) == 3


def test_plans_of_tensorrt_rtx_are_kept_whatever_machine_built_them(
    bundle: Bundle,
    rtx: Toolkit,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = PlanOptions(("projection",), sizes=ONE)
    build_plans(bundle, options=options, toolkit=rtx)
    fake_cuda.install(monkeypatch, gpus=[FakeGpu(name="NVIDIA H200")])
    elsewhere = choose_toolkit("tensorrt_rtx")
    assert elsewhere.gpu is not None
    assert build_plans(bundle, options=options, toolkit=elsewhere)[0].kept


def test_timings_are_kept_beside_the_plans(bundle: Bundle, tensorrt: tuple[FakeBuilder, FakeCuda]) -> None:
    fake, _ = tensorrt
    build_plans(bundle, options=PlanOptions(sizes=ONE))
    assert [config.cache.data.count(b"one more build") for config in fake.configs] == [0, 1, 2]
    folder = bundle.path / "plans"
    (name,) = [name for name in names_in(folder) if name.endswith(".cache")]
    assert name == "timing-tensorrt-11_1_0_1-sm9_0-NVIDIA_H200.cache"
    (folder / name).write_bytes(b"damaged")
    with pytest.warns(MilnceWarning, match="is damaged and not used; a new one is begun"):
        build_plans(bundle, options=PlanOptions(("text",), sizes=ONE, force=True))
    assert fake.configs[-1].cache.data == b"timings of 11.1.0.1"
    build_plans(bundle, options=PlanOptions(("text",), sizes=ONE, force=True))
    assert fake.configs[-1].cache.data.count(b"one more build") == 1
    build_plans(bundle, options=PlanOptions(("text",), sizes=ONE, force=True, timing_cache=False))
    assert fake.configs[-1].cache.data == b"timings of 11.1.0.1"


def test_what_is_built_is_found_and_runs(
    bundle: Bundle, original: tuple[Path, TinyWeights], tensorrt: tuple[FakeBuilder, FakeCuda]
) -> None:
    _, cuda = tensorrt
    options = PlanOptions(precisions=("fp32",), sizes=PlanSizes(batch=(Span.fixed(1), Span.fixed(2))))
    plans = [item.plan for item in build_plans(bundle, options=options)]
    toolkit = choose_toolkit()
    assert toolkit.gpu is not None
    found, library = find_plan(bundle.path / "plans", bundle.graph("video"), toolkit.gpu, [toolkit.library])
    assert (found, library) == (plans[0], toolkit.library)
    clips = tiny_clips(3, size=32)
    with open_graph(bundle.graph("video"), plans=bundle.path / "plans") as backend:
        embedded = backend.run({"video": clips})["video_embedding"]
    np.testing.assert_allclose(embedded, original[1].video(clips)[0], rtol=1e-4, atol=1e-4)
    cuda.check()


def test_a_read_only_bundle_is_built_elsewhere(
    bundle: Bundle, tmp_path: Path, tensorrt: tuple[FakeBuilder, FakeCuda], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as read_only:
        read_only.setattr("milnce.own_files.Path.mkdir", refuse)
        with pytest.raises(OutputError, match=r"Read-only file system; choose another folder \(--plans FOLDER\)"):
            build_plans(bundle)
    assert tensorrt[0].configs == []
    built = build_plans(bundle, tmp_path / "elsewhere" / "deep", PlanOptions(sizes=ONE))
    assert len(sidecars(tmp_path / "elsewhere" / "deep")[0]) == len(built) == 3
    assert not (bundle.path / "plans").exists()


def test_a_folder_that_others_can_write_to_is_refused_before_building(
    bundle: Bundle, tensorrt: tuple[FakeBuilder, FakeCuda]
) -> None:
    (bundle.path / "plans").mkdir()
    (bundle.path / "plans").chmod(0o777)
    with pytest.raises(PlanError, match="is writable for others"):
        build_plans(bundle)
    assert tensorrt[0].configs == []


def test_a_changed_onnx_file_is_never_built(bundle: Bundle, tensorrt: tuple[FakeBuilder, FakeCuda]) -> None:
    path = bundle.path / "text-fp16.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=r"text-fp16\.onnx was changed or damaged"):
        build_plans(bundle, options=PlanOptions(("text",)))
    assert tensorrt[0].configs == []
    assert not (bundle.path / "plans").exists()


def test_plans_that_were_finished_stay_when_a_later_one_fails(
    bundle: Bundle, tensorrt: tuple[FakeBuilder, FakeCuda]
) -> None:
    fake, _ = tensorrt

    def fail_later(_: object) -> None:
        fake.fails = "no luck" if len(fake.configs) > 1 else None

    fake.before_build = fail_later
    with pytest.raises(PlanBuildError, match="cannot build text tokens fp16"):
        build_plans(bundle, options=PlanOptions(sizes=ONE))
    assert [plan.module for plan in sidecars(bundle.path / "plans")[0]] == ["video"]
