"""A small engine on the simulated GPU for the tests of the stand-in for TensorRT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from cuda.bindings import runtime
from onnx import TensorProto, helper

from helpers import fake_tensorrt
from helpers.cuda_bench import ok
from helpers.fake_cuda import FakeCuda
from helpers.fake_tensorrt import VERSIONS, make_fake_plan

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Literal

    import pytest
    from numpy.typing import NDArray

    from helpers.fake_cuda_streams import Policy
    from helpers.fake_tensorrt import Flavour

    Name = Literal["tensorrt", "tensorrt_lean", "tensorrt_rtx"]

LOCAL = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
ARENA = 1024  # bytes
FLAVOURS: tuple[Flavour, ...] = ("8.5", "10", "rtx")
FIXED = [{"x": ((rows, 3),) * 3} for rows in (1, 4)]


def graph(dtype: int = TensorProto.FLOAT) -> bytes:
    """Return a graph that adds 1 to x (rows, 3), in float32, and its sum over columns."""
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["f", "one"], ["y"]),
        helper.make_node("ReduceSum", ["y", "axis"], ["s"], keepdims=0),
    ]
    constants = [
        helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0]),
        helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
    ]
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 3]),
        helper.make_tensor_value_info("s", TensorProto.FLOAT, ["rows"]),
    ]
    inputs = [helper.make_tensor_value_info("x", dtype, ["rows", 3])]
    made = helper.make_graph(nodes, "g", inputs, outputs, constants)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


class Log:
    """A logger derived from the module's, as a caller writes it, that keeps what it is told."""

    def __init__(self, trt: Any) -> None:  # noqa: ANN401  a stand-in of an untyped module
        self.messages: list[str] = []
        log = self

        class Logger(trt.ILogger):  # type: ignore[misc]  # untyped module
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, msg: str) -> None:  # noqa: ANN401
                assert severity == trt.ILogger.Severity.ERROR
                log.messages.append(msg)

        self.logger = Logger()


class Rig:
    """A module, an engine of a plan for 1 and 4 rows, a stream, and device memory for one batch and one arena."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        flavour: Flavour,
        *,
        policy: Policy = "lazy",
        seed: int = 0,
        dtype: int = TensorProto.FLOAT,
        profiles: Sequence[Mapping[str, Sequence[Sequence[int]]]] = FIXED,
        **plan: Any,  # noqa: ANN401  more options of make_fake_plan
    ) -> None:
        self.fake = FakeCuda(policy=policy, seed=seed)
        name: Name = "tensorrt_rtx" if flavour == "rtx" else "tensorrt"
        self.trt: Any = fake_tensorrt.install(monkeypatch, self.fake, name, flavour=flavour)
        self.log = Log(self.trt)
        self.flavour = flavour
        self.runtime = self.trt.Runtime(self.log.logger)
        options: dict[str, Any] = {"version": VERSIONS[flavour], "memory_bytes": ARENA} | plan
        self.engine = self.runtime.deserialize_cuda_engine(make_fake_plan(graph(dtype), profiles, **options))
        self.a, self.b = (ok(self.fake.cudaStreamCreateWithFlags(1)) for _ in range(2))
        self.arena = ok(self.fake.cudaMalloc(ARENA))
        self.event = ok(self.fake.cudaEventCreateWithFlags(2))

    def context(self, profile: int = 1, rows: int = 4) -> Any:  # noqa: ANN401
        """Return a context in a profile, with shapes and the shared arena set, and tensors in memory of its own."""
        if self.flavour == "8.5":
            context = self.engine.create_execution_context_without_device_memory()
        else:
            context = self.engine.create_execution_context(self.trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        assert context.set_optimization_profile_async(profile, self.a)
        ok(self.fake.cudaStreamSynchronize(self.a))
        assert context.set_input_shape("x", (rows, 3))
        self.give(context)
        for name in ("x", "y", "s"):
            assert context.set_tensor_address(name, ok(self.fake.cudaMalloc(256)))
        return context

    def give(self, context: Any) -> None:  # noqa: ANN401
        """Set the shared arena."""
        if self.flavour == "8.5":
            context.device_memory = self.arena
        else:
            context.set_device_memory(self.arena, ARENA)

    def array(self, context: Any, name: str, dtype: str = "float32", rows: int = 4) -> NDArray[Any]:  # noqa: ANN401
        """Return a tensor as it is on the device now."""
        columns = 1 if name == "s" else 3
        nbytes = rows * columns * np.dtype(dtype).itemsize
        return self.fake.view(context.get_tensor_address(name), nbytes).view(dtype).reshape(rows, columns)

    def order(self) -> None:
        """Let stream b come after what is on stream a."""
        ok(self.fake.cudaEventRecord(self.event, self.a))
        ok(self.fake.cudaStreamWaitEvent(self.b, self.event, 0))


def capture(rig: Rig, context: Any) -> runtime.cudaGraphExec_t:  # noqa: ANN401
    """Return a graph of one execution, run once before."""
    assert context.execute_async_v3(rig.a)
    ok(rig.fake.cudaStreamSynchronize(rig.a))
    ok(rig.fake.cudaStreamBeginCapture(rig.a, LOCAL))
    assert context.execute_async_v3(rig.a)
    return ok(rig.fake.cudaGraphInstantiate(ok(rig.fake.cudaStreamEndCapture(rig.a)), 0))
