"""Checkpoint to bundle, end to end; and that nothing is left when a step fails."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

import milnce
from helpers.graphs import ROWS
from milnce.errors import CheckpointError, ExportError, InputError, OutputError, ParityError
from milnce_convert import convert, export, measure
from milnce_convert import rewrite as rewrites
from milnce_convert.convert import ExportOptions, export_bundle, export_seeded_bundle
from milnce_convert.fixtures import as_video, moving_clips
from milnce_convert.parity import FP16_GATE, FP32_GATE, compare
from milnce_convert.towers import TowersConfig

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from helpers.graphs import Traced
    from milnce.bundle import Bundle
    from milnce_convert.export import ExportedGraph

WIDTH = 0.25  # the width of the `quarter` fixture, whose trace stands in for tracing
OPTIONS = ExportOptions(parity_sizes=((16, 64, 64), (10, 72, 88)))
STAGES = [
    "export the text tower",
    "compare the text tower with PyTorch",
    "export the video tower",
    "compare the video tower with PyTorch",
    "write the bundle",
]
SENTENCES = ["a man cuts a tomato", "the dog runs", "red car on the street at night"]


def _silent(_stage: str) -> None:
    pass


@pytest.fixture
def traced(quarter: Traced, monkeypatch: pytest.MonkeyPatch) -> Traced:
    """Let exports of the quarter-width towers take their trace from the session."""
    quarter.patch(monkeypatch)
    return quarter


@pytest.fixture(scope="module")
def bundle(quarter: Traced, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    with pytest.MonkeyPatch.context() as patch:
        quarter.patch(patch)
        folder = tmp_path_factory.mktemp("bundles") / "seeded"
        return export_seeded_bundle(0, folder, OPTIONS, width=WIDTH, progress=_silent)


def test_a_seeded_bundle_without_any_stand_in(tmp_path: Path) -> None:
    """The one test that traces inside `export_seeded_bundle`, at an eighth of the width."""
    stages: list[str] = []
    options = ExportOptions(precisions=("fp32",), input_forms=("uint8",), parity_sizes=((16, 64, 64),))
    bundle = export_seeded_bundle(1, tmp_path / "bundle", options, width=0.125, progress=stages.append)
    assert stages == ["seed the weights", *STAGES]
    bundle.verify()
    files = sorted(path.name for path in bundle.path.iterdir())
    assert files == [
        "manifest.json",
        "projection-fp32.onnx",
        "text-fp32.onnx",
        "video-uint8-fp32.onnx",
        "vocabulary.txt",
    ]
    assert list(tmp_path.iterdir()) == [tmp_path / "bundle"]


def test_bundle_holds_every_graph_with_its_parity(bundle: Bundle, quarter: Traced) -> None:
    milnce.Bundle.open(bundle.path).verify()
    manifest = bundle.manifest
    assert [(graph.module, graph.input_form, graph.precision) for graph in manifest.graphs] == [
        ("text", "tokens", "fp32"),
        ("text", "tokens", "fp16"),
        ("video", "uint8", "fp32"),
        ("video", "float32", "fp32"),
        ("video", "uint8", "fp16"),
        ("video", "float32", "fp16"),
        ("projection", "mixed_5c", "fp32"),
    ]
    assert manifest.model_digest == quarter.towers.digest()
    assert (manifest.vocabulary.words, manifest.vocabulary.max_words) == (ROWS - 1, 16)
    assert dict(manifest.sampling) == {"preset": "milnce-native", "frames": 32, "size": 224}
    assert manifest.made["sources"] == {"seed": 0, "width": WIDTH}
    assert manifest.made["config"] == json.loads(json.dumps(quarter.towers.config.to_json()))
    assert manifest.made["versions"]["torch"] == torch.__version__
    for graph in manifest.graphs:
        gate = FP16_GATE if graph.precision == "fp16" else FP32_GATE
        assert graph.parity["gate"] == gate.name
        assert set(graph.parity["outputs"]) == {spec.name for spec in graph.outputs}
        for cases in graph.parity["outputs"].values():
            assert len(cases) == (2 if graph.module == "video" else 1)
            for figures in cases.values():
                assert gate.cosine <= figures["cosine"] <= 1 + 1e-9
                assert 0 <= figures["relative_error"] <= gate.relative_error
    blocks = bundle.graph("video").parity["blocks"]
    assert list(blocks) == list(quarter.towers.config.video.blocks)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_loaded_model_gives_the_pytorch_towers_numbers(bundle: Bundle, quarter: Traced, backend: str) -> None:
    clips = moving_clips(3, 16, 64, 96, seed=21)
    with milnce.load(bundle.path, backend=backend) as model, torch.no_grad():
        assert model.backend.name == backend
        tokens = torch.from_numpy(np.asarray(model.tokenizer(SENTENCES)))
        assert (tokens > 0).sum(dim=1).tolist() == [5, 3, 7]
        expected = {**quarter.towers.video(as_video(clips)), **quarter.towers.text(tokens)}
        found = model.encode_video(clips)
        floats = model.encode_video(as_video(clips).contiguous().numpy())
        pairs: list[tuple[str, NDArray[np.float32]]] = [
            ("video_embedding", found.embedding),
            ("mixed_5c", found.mixed_5c),
            ("video_embedding", floats.embedding),
            ("video_embedding", model.project(found.mixed_5c)),
            ("text_embedding", model.encode_text(SENTENCES)),
        ]
        for name, array in pairs:
            assert FP32_GATE.failures(compare(expected[name].numpy(), array)) == [], name
        scores = milnce.similarity(model.encode_text(SENTENCES), found.embedding)
        np.testing.assert_allclose(
            scores, expected["text_embedding"].numpy() @ expected["video_embedding"].numpy().T, rtol=1e-3, atol=1e-3
        )


def _saved(towers: Any, folder: Path) -> tuple[Path, Path]:  # noqa: ANN401  Towers, or a changed copy
    weights, vocabulary = folder / "weights.pth", folder / "dict.npy"
    text = {f"module.text_module.{name}": value for name, value in towers.text.state_dict().items()}
    video = {f"module.{name}": value for name, value in towers.video.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": {**video, **text}}, weights)
    np.save(vocabulary, np.array(towers.words))
    return weights, vocabulary


def test_a_checkpoint_gives_the_same_model_as_its_towers(bundle: Bundle, traced: Traced, tmp_path: Path) -> None:
    weights, vocabulary = _saved(traced.towers, tmp_path)
    stages: list[str] = []
    options = ExportOptions(parity_sizes=((16, 64, 64),), max_words=20, preset="milnce-eval")
    config = TowersConfig.scaled(WIDTH, rows=ROWS)
    made = export_bundle(weights, vocabulary, tmp_path / "out" / "bundle", options, stages.append, config=config)
    assert stages == ["read the weights", *STAGES]
    assert made.manifest.model_digest == bundle.manifest.model_digest
    sources = made.manifest.made["sources"]
    assert {kind: source["file"] for kind, source in sources.items()} == {
        "weights": "weights.pth",
        "vocabulary": "dict.npy",
    }
    assert sources["vocabulary"]["bytes"] == vocabulary.stat().st_size
    assert sources["weights"]["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert made.manifest.vocabulary.max_words == 20
    assert dict(made.manifest.sampling) == {"preset": "milnce-eval", "frames": 16, "size": 224}
    assert made.manifest.name == "bundle"
    for graph in bundle.manifest.graphs:
        again = made.graph(graph.module, precision=graph.precision, input_form=graph.input_form)
        assert again.sha256 == graph.sha256, "the same weights give the same files"


@pytest.mark.usefixtures("traced")
def test_only_what_is_asked_for_is_written(tmp_path: Path) -> None:
    options = ExportOptions(precisions=("fp16",), input_forms=("uint8",), parity_sizes=((16, 64, 64),))
    made = export_seeded_bundle(0, tmp_path / "half", options, width=WIDTH, progress=_silent)
    kinds = [(graph.module, graph.input_form, graph.precision) for graph in made.manifest.graphs]
    assert kinds == [("text", "tokens", "fp16"), ("video", "uint8", "fp16"), ("projection", "mixed_5c", "fp32")]
    made.verify()
    with milnce.load(made.path, precision="fp16", backend="onnxruntime") as model:
        assert model.encode_video(moving_clips(1, 4, 32, 32)).embedding.shape == (1, 512)


class _WrongFold(rewrites.FoldSpaceToDepth):
    """Takes the colour before the offsets when the kernel is folded, as another space-to-depth would."""

    def rewrite(self, op: Any, x: Any, w: Any, convolved: Any, **rest: Any) -> Any:  # noqa: ANN401  as its base class
        weight = w.const_value.numpy()
        outputs, channels = weight.shape[:2]
        cells = weight.reshape(outputs, channels // 8, 8, *weight.shape[2:]).swapaxes(1, 2).reshape(weight.shape)
        swapped = op.initializer(ir.tensor(np.ascontiguousarray(cells), name="swapped"), name="swapped")
        return super().rewrite(op, x, swapped, convolved, **rest)


def _wrong_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewrites, "FOLD_STEM", _WrongFold.rule())  # type: ignore[no-untyped-call]  # the rewriter's


def _no_cast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hand the FP32 graph out as the FP16 one."""

    def half_precision(graph: ExportedGraph) -> ExportedGraph:
        return type(graph)(**{**vars(graph), "precision": "fp16"})

    monkeypatch.setattr(convert, "half_precision", half_precision)


def _other_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Divide the pixels by 256."""
    honest = export._accept_uint8  # noqa: SLF001  the place where it would happen

    def accept(model: Any, spec: Any) -> None:  # noqa: ANN401  ir.Model and TensorSpec
        honest(model, spec)
        value = model.graph.initializers["video_maximum"]
        value.const_value = ir.tensor(np.array([256.0], np.float32), name="video_maximum")

    monkeypatch.setattr(export, "_accept_uint8", accept)


def _one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Change what one Inception block gives where only the comparison block by block looks."""
    honest = measure.run_graph

    def run_graph(model: bytes, feeds: Any) -> Any:  # noqa: ANN401  as the function it stands for
        outputs = honest(model, feeds)
        if "mixed_4d_map" in outputs:
            outputs["mixed_4d_map"] = outputs["mixed_4d_map"] * np.float32(1.001)
        return outputs

    monkeypatch.setattr(measure, "run_graph", run_graph)


@pytest.mark.parametrize(
    ("defect", "said"),
    [
        (_one_block, "video uint8 fp32 at mixed_4d fails the fp32 parity gate: centred cosine 0.99999"),
        (_wrong_fold, "video uint8 fp32, video_embedding, 6 clips 16x64x64 fails the fp32 parity gate: cosine"),
        # To the FP32 graph; or to PyTorch, looked at first, where ONNX Runtime adds up as it does on this processor.
        (_no_cast, "text tokens fp16, text_embedding, 32 sentences of 16 ids ... bit-identical"),
        (_other_scale, "video uint8 fp32, video_embedding, 6 clips 16x64x64 fails the fp32 parity gate:"),
    ],
)
@pytest.mark.usefixtures("traced")
def test_a_planted_defect_leaves_no_bundle(
    defect: Any,  # noqa: ANN401  one of the functions above
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    defect(monkeypatch)
    with pytest.raises(ParityError) as caught:
        export_seeded_bundle(0, tmp_path / "deep" / "bundle", OPTIONS, width=WIDTH, progress=_silent)
    begin, _, end = said.partition(" ... ")
    assert str(caught.value).startswith(begin)
    assert end in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.usefixtures("traced")
def test_an_interrupt_at_any_stage_leaves_nothing(stage: str, tmp_path: Path) -> None:
    def interrupt(begun: str) -> None:
        if begun == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_seeded_bundle(
            0, tmp_path / "bundle", ExportOptions(parity_sizes=((16, 64, 64),)), width=WIDTH, progress=interrupt
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("traced")
def test_one_word_a_sentence(tmp_path: Path) -> None:
    options = ExportOptions(precisions=("fp32",), input_forms=("uint8",), max_words=1, parity_sizes=((16, 64, 64),))
    made = export_seeded_bundle(0, tmp_path / "bundle", options, width=WIDTH, progress=_silent)
    assert made.tokenizer()("red car").shape == (1, 1)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(seed: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"seed {seed} given; 0 to 4294967295 expected"):
        export_seeded_bundle(seed, tmp_path / "bundle", OPTIONS, progress=_silent)


def test_an_interrupt_inside_the_exporter_is_an_interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrapped(*_: object, **__: object) -> None:
        error = torch.onnx.OnnxExporterError("something else")
        error.__context__ = KeyboardInterrupt()
        raise error

    monkeypatch.setattr(torch.onnx, "export", wrapped)
    with pytest.raises(KeyboardInterrupt):
        export_seeded_bundle(0, tmp_path / "bundle", OPTIONS, width=WIDTH, progress=_silent)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_of_the_exporter_names_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.onnx.OnnxExporterError("no such operator")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(ExportError, match=r"torch\.onnx\.export failed on the text_embedding graph: no such operator"):
        export_seeded_bundle(0, tmp_path / "bundle", OPTIONS, width=WIDTH, progress=_silent)


def test_an_existing_destination_is_refused_before_any_work(tmp_path: Path) -> None:
    def never(stage: str) -> None:
        raise AssertionError(stage)

    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="exists already; choose another folder, or overwrite it"):
        export_seeded_bundle(0, folder, OPTIONS, progress=never)
    with pytest.raises(OutputError, match="exists and is not a bundle, so it is not overwritten"):
        export_bundle(tmp_path / "w.pth", tmp_path / "d.npy", folder, ExportOptions(overwrite=True), never)
    assert (folder / "notes.txt").read_text() == "mine"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_wrong_checkpoint_leaves_nothing(quarter: Traced, tmp_path: Path) -> None:
    weights, vocabulary = _saved(quarter.towers, tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=r"wrong shape: conv1\.conv1\.weight \(16, 24, 2, 4, 4\), expected \(64,"):
        export_bundle(weights, vocabulary, tmp_path / "out" / "bundle", OPTIONS, _silent)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"precisions": ()}, "precisions none given; one or more of fp32, fp16 expected"),
        ({"precisions": ("fp32", "int8")}, "precisions fp32, int8 given; one or more of fp32, fp16 expected"),
        ({"input_forms": ("bgr",)}, "input forms bgr given; one or more of uint8, float32 expected"),
        ({"precisions": ("fp16", "fp16")}, "precisions fp16, fp16 given; each once"),
        ({"input_forms": ("uint8", "uint8")}, "input forms uint8, uint8 given; each once"),
        ({"max_words": 0}, "max_words is 0; at least 1 expected"),
        ({"opset": 17}, "opset 17 given; 18 to 20 expected"),
        ({"opset": 21}, "opset 21 given; 18 to 20 expected"),
        ({"preset": "nonsense"}, "nonsense"),
        ({"parity_sizes": ()}, "no parity sizes given; at least one (frames, height, width) expected"),
        ({"fixed_size": (2, 64, 64)}, "size 2x64x64 is too small to compare with PyTorch; at least 4x32x32"),
        ({"parity_sizes": ((16, 16, 64),)}, "size 16x16x64 is too small"),
    ],
)
def test_options_are_validated(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        ExportOptions(**options)
    assert said in str(caught.value)


def test_an_impossible_fixed_size_is_refused_before_the_work(tmp_path: Path) -> None:
    stages: list[str] = []
    options = ExportOptions(fixed_size=(16, 65, 64))
    with pytest.raises(ExportError, match="fixed size: height 65 given; it must be a multiple of 2"):
        export_seeded_bundle(0, tmp_path / "bundle", options, width=0.125, progress=stages.append)
    assert stages == ["seed the weights"]
    assert list(tmp_path.iterdir()) == []
