# SPDX-License-Identifier: MIT
"""Read data that other programs wrote or sent into a typed form; only here is a mismatch put into words."""

from __future__ import annotations

from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


def read(form: TypeAdapter[T], data: object) -> T:
    """Return plain data in the form that it should have.

    Raises:
        ValueError: the data has another form; the message names the first wrong field, on one line.
    """
    try:
        return form.validate_python(data)
    except ValidationError as err:
        problem = err.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, problem['loc'])) or 'the whole value'}: {problem['msg']}") from err
