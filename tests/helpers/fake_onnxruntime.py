# ruff: noqa: D102  (methods have the names and the meaning of the library's)
"""ONNX Runtime's CUDA provider on the simulated GPU: real sessions on the CPU, run when the simulated stream runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnxruntime

from helpers import fake_cuda

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

    from helpers.fake_cuda import FakeCuda

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class CudaSession:
    """A session that computes on the CPU, in buffers of the simulated GPU, in the order of its stream.

    Attributes:
        provider_options: What the CUDA provider was told.
        disable_cpu_ep_fallback: The session's configuration.
    """

    fake: FakeCuda
    opened: list[CudaSession]
    used_providers: Sequence[str] = (CUDA, CPU)

    def __init__(self, model: bytes, options: Any, *, providers: list[Any], enable_fallback: int) -> None:  # noqa: ANN401
        ((name, self.provider_options),) = providers
        assert name == CUDA
        assert enable_fallback == 0
        # Raises if it was never set.
        self.disable_cpu_ep_fallback = options.get_session_config_entry("session.disable_cpu_ep_fallback")
        self._session = onnxruntime.capi.onnxruntime_inference_collection.InferenceSession(model, providers=[CPU])
        self._bindings: dict[int, tuple[Any, list[tuple[str, int, int]]]] = {}
        self.opened.append(self)

    def get_providers(self) -> list[str]:
        return list(self.used_providers)

    def disable_fallback(self) -> None:
        self._session.disable_fallback()

    def get_inputs(self) -> Any:  # noqa: ANN401 - the library is not typed
        return self._session.get_inputs()

    def get_outputs(self) -> Any:  # noqa: ANN401 - the library is not typed
        return self._session.get_outputs()

    def io_binding(self) -> Binding:
        return Binding(self._session.io_binding())

    def run_with_iobinding(self, binding: Binding, run_options: Any) -> None:  # noqa: ANN401
        # Without this entry ONNX Runtime would wait for the stream at the end of each run.
        assert run_options.get_run_config_entry("disable_synchronize_execution_providers") == "1"

        fake, session = self.fake, self._session

        def kernel() -> None:  # which does not know this object: the simulation keeps it
            for pointer, nbytes in binding.ranges:
                fake.view(pointer, nbytes)
            session.run_with_iobinding(binding.real)

        accesses = [fake_cuda.writes(pointer, nbytes) for pointer, nbytes in binding.ranges]
        error = fake.launch(int(self.provider_options["user_compute_stream"]), kernel, accesses=accesses)
        assert int(error) == 0


class Binding:
    """A binding to buffers of the simulated GPU."""

    def __init__(self, real: Any) -> None:  # noqa: ANN401 - the library is not typed
        self.real = real
        self.ranges: list[tuple[int, int]] = []

    def bind_input(self, name: str, kind: str, _: int, dtype: Any, shape: tuple[int, ...], pointer: int) -> None:  # noqa: ANN401
        self._bind(self.real.bind_input, name, kind, dtype, shape, pointer)

    def bind_output(self, name: str, kind: str, _: int, dtype: Any, shape: tuple[int, ...], pointer: int) -> None:  # noqa: ANN401
        self._bind(self.real.bind_output, name, kind, dtype, shape, pointer)

    def _bind(self, bind: Any, name: str, kind: str, dtype: Any, shape: Any, pointer: int) -> None:  # noqa: ANN401
        assert kind == "cuda"
        nbytes = dtype().itemsize
        for size in shape:
            nbytes *= size
        self.ranges.append((pointer, nbytes))
        bind(name, "cpu", 0, dtype, shape, pointer)

    def clear_binding_inputs(self) -> None:
        self.real.clear_binding_inputs()

    def clear_binding_outputs(self) -> None:
        self.real.clear_binding_outputs()


def install(monkeypatch: pytest.MonkeyPatch, fake: FakeCuda) -> type[CudaSession]:
    """Let ONNX Runtime have a CUDA provider on `fake`; returns the class whose `opened` lists its sessions.

    Sessions of the CPU provider alone are the library's own.
    """
    kind = type("CudaSession", (CudaSession,), {"fake": fake, "opened": []})
    real = onnxruntime.InferenceSession

    def session(model: bytes, options: Any = None, *, providers: list[Any], **others: Any) -> Any:  # noqa: ANN401
        return (real if providers == [CPU] else kind)(model, options, providers=providers, **others)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    # A release that has the kernels, built for a CUDA whose libraries nobody looks for.
    monkeypatch.setattr(onnxruntime, "__version__", "1.31.1")
    monkeypatch.setattr(onnxruntime, "cuda_version", "", raising=False)
    return kind
