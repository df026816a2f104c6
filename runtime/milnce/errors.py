"""Every error milnce raises on purpose.

All derive from `MilnceError`, and each also from the builtin a caller would expect, so `except ValueError`
keeps working. Messages say what was given, what was expected or available, and what to do.
"""


class MilnceError(Exception):
    """Base of every error raised on purpose by milnce."""


class MilnceWarning(UserWarning):
    """Base of every warning issued by milnce."""


class InputError(MilnceError, ValueError):
    """An argument of the caller's is wrong: dtype, rank, size, range, name or emptiness."""


class BundleError(MilnceError, ValueError):
    """A bundle is damaged, changed, incomplete or not a bundle."""


class BundleNotFoundError(BundleError, FileNotFoundError):
    """There is no bundle at the given path."""


class BundleVersionError(BundleError):
    """The bundle's format is newer than this release can read."""


class BackendError(MilnceError, RuntimeError):
    """A backend could not open or run a graph."""


class BackendUnavailableError(BackendError):
    """The backend, device or precision that was asked for cannot be had on this machine."""


class CudaError(BackendError):
    """A call of the CUDA runtime failed; the message has the call's name and the driver's words."""


class CudaUnavailableError(BackendUnavailableError):
    """There is no GPU to run on: no CUDA bindings, no driver, no device, or a driver that is too old."""


class DeviceMemoryError(BackendError, MemoryError):
    """Device or pinned memory is exhausted, or would pass a declared limit; smaller batches may still run."""


class PlanError(BackendError):
    """A TensorRT plan is missing, damaged, stale or not to be trusted; the message says how to build it."""


class NonFiniteError(BackendError):
    """A graph gave NaN or infinity for this input; the backend itself goes on working."""


class MissingDependencyError(MilnceError, ImportError):
    """An optional package is not installed; the message says which extra brings it."""


class VideoError(MilnceError, ValueError):
    """A video file cannot be decoded, or is refused."""


class RangeError(VideoError, InputError):
    """The times asked for do not fit this video; they may fit others."""


class DecoderError(VideoError):
    """The process that decoded a video died, or hung and was ended; other videos go on in a new one."""


class QueueFullError(MilnceError, RuntimeError):
    """A bounded queue of requests is full; try again later, or send less."""


class DeadlineError(MilnceError, TimeoutError):
    """A request was not begun before its deadline, and so was never run."""


class ClosedError(MilnceError, RuntimeError):
    """What was asked is closed, or was closed before it could answer."""


class OutputError(MilnceError, OSError):
    """A result cannot be written where it was asked for."""


class SearchIndexError(MilnceError, ValueError):
    """A search index is damaged, not one, of another model or sampling, or kept busy by another process."""


class CheckpointError(MilnceError, ValueError):
    """Weights or a vocabulary do not fit the towers, or the file is refused."""


class ExportError(MilnceError, RuntimeError):
    """The towers could not be turned into a valid ONNX graph."""


class PlanBuildError(ExportError):
    """A graph could not be built into a TensorRT plan, or the plan is not what was asked for."""


class QuantizationError(ExportError):
    """A graph could not be quantised, or retrieves too much worse than the one that it was made from."""


class ParityError(MilnceError, ArithmeticError):
    """An exported graph does not give the numbers of the PyTorch tower."""


class UnknownWordsWarning(MilnceWarning):
    """No word of a sentence is in the vocabulary, so it is encoded as padding only."""
