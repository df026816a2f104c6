"""The processor and the board: what can be installed on them, and what an ARM processor computes in which precision."""

from __future__ import annotations

import ctypes
import platform
import re
from pathlib import Path

# What Linux says of an ARM processor: the word that getauxval gives and the bit in it, from
# arch/arm64/include/uapi/asm/hwcap.h. /proc/cpuinfo would be the host's in an emulator.
_HWCAP, _HWCAP2 = 16, 26
_ARM_FEATURES = {
    "asimd": (_HWCAP, 1),
    "fphp": (_HWCAP, 9),
    "asimdhp": (_HWCAP, 10),
    "asimddp": (_HWCAP, 20),
    "sve": (_HWCAP, 22),
    "i8mm": (_HWCAP2, 13),
    "bf16": (_HWCAP2, 14),
}

_RELEASE = Path("/etc/nv_tegra_release")
_BOARD = Path("/proc/device-tree/model")
# Jetson Linux, or else its kernel -> JetPack (https://developer.nvidia.com/embedded/jetpack-archive).
_JETPACKS = {"35": 5, "36": 6, "38": 7, "39": 7}
_KERNELS = {"5.10": 5, "5.15": 6, "6.8": 7}
_TOO_OLD = "JetPack 5 is too old, with Python 3.8 and CUDA 11: install JetPack 6 or newer"
_ON_JETSON = (
    "sudo apt install nvidia-jetpack python3-venv; then, in the checkout: python3 -m venv --system-site-packages .venv "
    '&& .venv/bin/pip install ".[jetson]"'
)
# Extras that leave something out on a Jetson, as pyproject.toml has them, and why.
_NOT_ON_JETSON = {
    "tensorrt": "on a Jetson TensorRT comes with JetPack",
    "cuda": "onnxruntime-gpu has no kernels for a Jetson; JetPack's TensorRT runs plans",
    "rtx": "TensorRT-RTX has no kernels for a Jetson; JetPack's TensorRT builds plans and runs them",
    "nvdec": "PyNvVideoCodec does not decode on a Jetson; PyAV does, on the CPU",
}


def is_arm() -> bool:
    """Whether this is a 64-bit ARM processor."""
    return platform.machine() == "aarch64"


def arm_features() -> tuple[str, ...]:
    """Return the instruction sets of this ARM processor that change how the towers run; empty on any other.

    Names are those of /proc/cpuinfo: "asimd", "fphp" and "asimdhp" (arithmetic in FP16), "asimddp" (8-bit dot
    products), "sve", "i8mm", "bf16".
    """
    if not is_arm():
        return ()
    ask = ctypes.CDLL(None).getauxval
    ask.restype, ask.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    return tuple(name for name, (word, bit) in _ARM_FEATURES.items() if ask(word) >> bit & 1)


def jetson() -> str | None:
    """Return what this Jetson is, such as "NVIDIA Jetson AGX Orin, Jetson Linux 36.4.3 (JetPack 6)", or None.

    A container may show the kernel alone; then the release is left out.
    """
    text = _text(_RELEASE)
    if not text and "tegra" not in platform.release():
        return None
    release, known = _release(text), jetpack()
    linux = f"Jetson Linux {'.'.join(release)}" if release else "Jetson Linux"
    return f"{_text(_BOARD) or 'NVIDIA Jetson'}, {linux}" + (f" (JetPack {known})" if known else "")


def jetpack() -> int | None:
    """Return the JetPack of this Jetson, such as 6; None if it is not known, or this is no Jetson."""
    release, kernel = _release(_text(_RELEASE)), platform.release()
    if release:
        return _JETPACKS.get(release[0])
    return _KERNELS.get(".".join(kernel.split(".")[:2])) if "tegra" in kernel else None


def install(extra: str) -> str:
    """Return the command that installs an extra, or why it does not work on this board, with the command that does.

    Args:
        extra: Its name in pyproject.toml.
    """
    if extra not in {*_NOT_ON_JETSON, "jetson"} or jetson() is None:
        return f'pip install "milnce[{extra}]"'
    if jetpack() == min(_JETPACKS.values()):
        return _TOO_OLD
    return ": ".join(filter(None, (_NOT_ON_JETSON.get(extra), _ON_JETSON)))


def bindings_extra() -> str:
    """Return the extra that brings NVIDIA's CUDA bindings for the driver here, and little else."""
    return "tensorrt" if jetson() is None else "jetson"


def _release(text: str) -> tuple[str, ...]:
    found = re.match(r"# R(\d+) \(release\), REVISION: ([\d.]+)", text)
    return found.groups() if found else ()


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace").strip("\0 \n")
    except OSError:
        return ""
