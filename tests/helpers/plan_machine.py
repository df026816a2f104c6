"""A machine with simulated GPUs and a simulated TensorRT, and backends opened on plans of a tiny bundle."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal

from helpers import fake_cuda, fake_tensorrt
from helpers.fake_plans import write_fake_plan
from milnce import backends
from milnce.backends import BackendChoice
from milnce.backends.tensorrt import TensorRtBackend
from milnce.bundle import Bundle
from milnce.plans import LIBRARIES

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

    import pytest

    from helpers.fake_cuda import FakeCuda, FakeGpu
    from helpers.fake_cuda_streams import Policy
    from helpers.fake_tensorrt import Flavour
    from helpers.tiny_bundle import Tiny
    from milnce.backends import CudaOptions
    from milnce.plans import Plan, PlanProfile

MODULES: dict[Flavour, Literal["tensorrt", "tensorrt_rtx"]] = {
    "8.5": "tensorrt",
    "10": "tensorrt",
    "rtx": "tensorrt_rtx",
}
GPUS = (fake_cuda.FakeGpu("First GPU", total_bytes=8 << 20), fake_cuda.FakeGpu("Second GPU", total_bytes=8 << 20))


class PlanMachine:
    """Simulated GPUs with one TensorRT, and the backends opened there.

    Attributes:
        fake: The simulated CUDA.
        flavour: Which generation of TensorRT is installed.
        trt: Its module.
        bundle: A bundle whose plans are in `plans`.
        plans: The folder of plans.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        tiny: Tiny,
        plans: Path,
        flavour: Flavour = "10",
        *,
        policy: tuple[Policy, int] = ("lazy", 0),
        gpus: tuple[FakeGpu, ...] = GPUS,
    ) -> None:
        monkeypatch.setattr("milnce.backends.selection._driver_problem", lambda: None)
        monkeypatch.setattr("milnce.plans.find_spec", lambda _: None)  # what is really installed here
        for name in LIBRARIES:  # and what another test has imported of it
            monkeypatch.delitem(sys.modules, name, raising=False)
        self.fake: FakeCuda = fake_cuda.install(monkeypatch, policy=policy[0], seed=policy[1], gpus=gpus)
        self.flavour = flavour
        self.trt: ModuleType = fake_tensorrt.install(monkeypatch, self.fake, MODULES[flavour], flavour=flavour)
        self.tiny = tiny
        self.bundle = Bundle.open(tiny.path)
        self.plans = plans
        self._backends = ExitStack()

    def write(
        self,
        module: str = "video",
        form: str | None = None,
        profiles: list[PlanProfile] | None = None,
        precision: str = "fp32",
        **plan: Any,  # noqa: ANN401 - write_fake_plan's own
    ) -> Plan:
        """Write a plan of a graph."""
        graph = self.bundle.graph(module, input_form=form, precision=precision)
        plan = {"flavour": self.flavour, **plan}
        return write_fake_plan(self.bundle, graph, self.fake, profiles=profiles, folder=self.plans, **plan)

    def open(
        self,
        module: str = "video",
        form: str | None = None,
        *,
        precision: str = "fp32",
        device: str = "cuda",
        options: CudaOptions | None = None,
        index_limit: int | None = None,
    ) -> TensorRtBackend:
        """Open the plan of a graph; it is closed by `close`."""
        graph = self.bundle.graph(module, input_form=form, precision=precision)
        choice = BackendChoice("tensorrt", device, precision, "tests", plans=self.plans)
        opened = backends.open_graph(choice, None, graph, cuda=options, index_limit=index_limit)
        self._backends.callback(opened.close)
        assert isinstance(opened, TensorRtBackend)
        return opened

    def made(
        self,
        module: str = "video",
        form: str | None = None,
        profiles: list[PlanProfile] | None = None,
        options: CudaOptions | None = None,
        **plan: Any,  # noqa: ANN401 - write_fake_plan's own
    ) -> TensorRtBackend:
        """Write a plan and open it."""
        self.write(module, form, profiles, **plan)
        return self.open(module, form, options=options)

    def close(self) -> None:
        """Close every backend, and assert that nothing was done wrong and nothing is left."""
        self._backends.close()
        self.fake.check()
