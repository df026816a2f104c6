"""Which backend runs each module of one bundle: chosen when it is first needed, as looking for backends takes time.

The text tower and the projection are so small that NumPy runs them on a CPU, exactly and without a library being
loaded; see `milnce.text_tower`. A GPU that was chosen for the video tower runs them too, where it can.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from milnce.backends import numpy_text
from milnce.backends.base import BackendChoice
from milnce.backends.selection import device_index, expected_precision, select
from milnce.errors import BackendUnavailableError, BundleError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from milnce.bundle import Bundle

_OWN = numpy_text.NAME


class Choices:
    """What runs each module of a bundle.

    Args:
        bundle: The bundle.
        backend: As `milnce.load` takes it, and so are the others.
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: "fp32", "fp16", ..., or None.
        plans: Folder with TensorRT plans, or None for the bundle's own.
        modules: Modules that will run; () if that is not known yet.
        chosen: What runs all of them, if that is already known.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        backend: str = "auto",
        device: str = "auto",
        precision: str | None = None,
        plans: Path | None = None,
        modules: Sequence[str] = (),
        chosen: BackendChoice | None = None,
    ) -> None:
        self._bundle = bundle
        self._asked = (backend, device, precision)
        self._plans = plans
        self._modules = tuple(modules)
        self._main = chosen
        self._named = chosen is not None or backend != "auto"
        self._of: dict[str, BackendChoice] = {}
        # Whether text needs no look at what else this machine has: nothing was asked for that NumPy is not.
        self._own_first = not self._named and device in {"auto", "cpu"} and precision != "fp16" and plans is None
        if "video" in self._modules or not self._own_first:
            self.main()

    def main(self, module: str | None = None) -> BackendChoice:
        """Return what runs the video tower, and all else that NumPy does not run.

        Args:
            module: A module that is to run now. It needs a plan where plans are taken; so do those of the start.

        Raises:
            BackendUnavailableError: if nothing here can do what was asked for.
        """
        if self._main is None:
            whole = self._modules or (() if self._asked[0] == _OWN else ("video", "text"))
            modules = (module,) if module is not None and module not in whole else whole
            self._main = select(*self._asked, bundle=self._bundle, plans=self._plans, modules=modules)
        return self._main

    @property
    def latest(self) -> BackendChoice | None:
        """What runs the video tower if that was chosen; else what runs another module; None if nothing was."""
        return self._main or next(iter(self._of.values()), None)

    def made(self) -> dict[str, BackendChoice]:
        """Return what `of` gave so far, by module."""
        return dict(self._of)

    @property
    def precision(self) -> str:
        """The precision that the video tower runs in, without a look for backends where all would take the same."""
        if self._main is None:
            _, device, precision = self._asked
            expected = expected_precision(device, precision)
            return expected or self.main().precision
        return self._main.precision

    def of(self, module: str) -> BackendChoice:
        """Return what runs `module`.

        Raises:
            BackendUnavailableError: if nothing can.
        """
        if module not in self._of:
            self._of[module] = self._own_choice(module) or self._main_choice(module)
        return self._of[module]

    def instead(self, module: str, problem: str) -> BackendChoice:
        """Return what runs `module` after all, as what `of` gave cannot, and remember it.

        Args:
            module: The module.
            problem: Why it cannot.

        Raises:
            BackendUnavailableError: if it was asked for by name.
        """
        refused = self._of[module]
        sentence = f"{refused.name} on {refused.device}: {problem}"
        if self._named:
            raise BackendUnavailableError(f"backend {refused.name} asked for; {sentence}. Ask for another one, or auto")
        self._of[module] = _passing_over(self._main_choice(module), sentence)
        return self._of[module]

    def _main_choice(self, module: str) -> BackendChoice:
        choice = self.main(module)
        if choice.name == _OWN and module not in numpy_text.MODULES:
            raise BackendUnavailableError(
                f"backend {_OWN} asked for; it runs {' and '.join(numpy_text.MODULES)}, not {module}. Load the bundle "
                f'with backend="auto" for {module}, or with modules=("text",) for sentences alone'
            )
        return choice

    def _own_choice(self, module: str) -> BackendChoice | None:
        """Return NumPy where it is to run `module`, else None."""
        if self._named or module not in numpy_text.MODULES or not self._holds(module):
            return None
        if self._main is None and self._own_first:
            return _own(module)
        main = self.main(module)
        if main.device == "cpu":
            return None if main.precision == "fp16" and module == "text" else _own(module)
        problem = self._plan_problem(main, module)
        return None if problem is None else _passing_over(_own(module), f"{main.name} on {main.device}: {problem}")

    def _holds(self, module: str) -> bool:
        graphs = self._bundle.manifest.graphs
        return any((graph.module, graph.precision) == (module, "fp32") for graph in graphs)

    def _plan_problem(self, main: BackendChoice, module: str) -> str | None:
        """Return why the chosen GPU backend has nothing to run `module` with, or None."""
        if main.plans is None:
            return None
        from milnce.backends import tensorrt  # noqa: PLC0415 - backends load on use

        precision = "fp32" if module == "projection" else main.precision
        try:
            graph = self._bundle.graph(module, precision=precision)
        except BundleError as error:
            return str(error)
        index = device_index(main.device)
        # Not the whole plan: one that is there and damaged is an error where it is opened.
        problem = tensorrt.plans_problem(main.plans, [graph], index, whole=False, bundle=self._bundle)
        return None if problem is None else problem.replace("\n  - ", " - ")


def _own(module: str) -> BackendChoice:
    tower = "text tower" if module == "text" else "projection"
    reason = f"version {numpy_text.probe().version}, the {tower} needs no other library on a CPU, and is exact in it"
    return BackendChoice(_OWN, "cpu", "fp32", reason)


def _passing_over(choice: BackendChoice, sentence: str) -> BackendChoice:
    joint = "; " if choice.passed_over else "; passed over: "
    return replace(choice, reason=f"{choice.reason}{joint}{sentence}", passed_over=(*choice.passed_over, sentence))
