"""Building one graph of the tiny bundle over stand-ins for TensorRT 8.5, 10 and 11."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from helpers import fake_builder, fake_cuda, fake_tensorrt
from helpers.fake_cuda import FakeGpu
from milnce_convert.plan_engine import build_engine
from milnce_convert.plan_module import choose_toolkit
from milnce_convert.plan_profiles import PlanSizes, Span, make_profiles
from milnce_convert.plan_settings import BuilderSettings

if TYPE_CHECKING:
    import pytest

    from helpers.fake_builder import FakeBuilder
    from milnce.bundle import Bundle
    from milnce_convert.plan_engine import BuiltEngine

GENERATIONS = ("8.5", "10", "11")
VERSIONS = {"8.5": "8.5.3.1", "10": "10.13.3.9", "11": "11.1.0.106"}
VIDEO = "video uint8 fp16 (video-uint8-fp16.onnx)"


class PlanBench:
    """A stand-in's toolkit, and its records."""

    def __init__(self, bundle: Bundle, fake: FakeBuilder, cuda: fake_cuda.FakeCuda, device: int) -> None:
        self.bundle, self.fake, self.cuda = bundle, fake, cuda
        self.toolkit = choose_toolkit(device=device)

    def build(
        self,
        *,
        module: str = "video",
        precision: str = "fp16",
        settings: BuilderSettings | None = None,
        **options: Any,  # noqa: ANN401 - of build_engine
    ) -> BuiltEngine:
        """Build a graph of the tiny bundle, for two batch sizes of clips or one of sentences."""
        graph = self.bundle.graph(module, precision=precision)
        sizes = PlanSizes(batch=(Span.fixed(1), Span.fixed(4)), text_batch=(Span.fixed(2),))
        profiles = make_profiles(graph, self.bundle.manifest, sizes)
        model = self.bundle.read(graph)
        return build_engine(self.toolkit, graph, model, profiles, settings or BuilderSettings(), **options)


def place(monkeypatch: pytest.MonkeyPatch, bundle: Bundle, generation: Any = "11", *, device: int = 0) -> PlanBench:  # noqa: ANN401 - one of GENERATIONS
    """Put a generation of TensorRT in place, on a machine with two GPUs, and return its bench."""
    cuda = fake_cuda.install(monkeypatch, gpus=[FakeGpu(name="NVIDIA H200")] * 2)
    flavour: Any = "8.5" if generation == "8.5" else "10"
    module = fake_tensorrt.install(monkeypatch, cuda, "tensorrt", flavour=flavour, version=VERSIONS[generation])
    return PlanBench(bundle, fake_builder.add(module, generation), cuda, device)
