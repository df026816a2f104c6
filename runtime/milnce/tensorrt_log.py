"""TensorRT's messages: to the logger "milnce.tensorrt", and the error lines of a failure to whoever reports it."""

from __future__ import annotations

import logging
from threading import Lock
from typing import Any

LOG = logging.getLogger("milnce.tensorrt")
# Without this Python prints the warnings of programs that set up no logging: TensorRT's are for those who ask.
LOG.addHandler(logging.NullHandler())

_ERRORS_KEPT = 10

# Never given up: TensorRT keeps a bare pointer to the first one it was given, and writes to it from then on.
_loggers: list[Any] = []
_lock = Lock()


def logger_of(trt: Any) -> Any:  # noqa: ANN401 - the library is not typed
    """Return the process' one logger for a TensorRT module, since TensorRT keeps the first that it is given.

    Its `errors` are the first messages of severity error since the list was last cleared.

    Args:
        trt: The module.
    """
    with _lock:
        for logger in _loggers:
            if logger.trt is trt:
                return logger
        _loggers.append(_make(trt))
        return _loggers[-1]


def _make(trt: Any) -> Any:  # noqa: ANN401 - the library is not typed
    severity = trt.ILogger.Severity
    levels = {
        severity.INTERNAL_ERROR: logging.ERROR,
        severity.ERROR: logging.ERROR,
        severity.WARNING: logging.WARNING,
        # TensorRT says dozens of lines a build at INFO.
        severity.INFO: logging.DEBUG,
        severity.VERBOSE: logging.DEBUG,
    }

    class Logger(trt.ILogger):  # type: ignore[misc] # the library is not typed
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.trt = trt
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:  # noqa: ANN401
            level = levels.get(severity, logging.DEBUG)
            if level == logging.ERROR and len(self.errors) < _ERRORS_KEPT:
                self.errors.append(message.strip())
            LOG.log(level, "%s", message.strip())

    return Logger()
