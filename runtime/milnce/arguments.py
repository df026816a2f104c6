"""Checks of plain arguments that several public functions share."""

from __future__ import annotations

import operator

from milnce.errors import InputError


def positive(name: str, value: object) -> int:
    """Return `value` as an int.

    Raises:
        InputError: naming the argument, if it is not a whole number of at least 1.
    """
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type] # the test is the call
    except TypeError:
        number = 0
    if number < 1:
        raise InputError(f"{name} is {value!r}; a whole number of at least 1 expected")
    return number
