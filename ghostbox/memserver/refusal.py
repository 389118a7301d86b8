# SPDX-License-Identifier: MIT
"""Define the error for a request that a donor refuses, and the HTTP status of each of its codes."""

from __future__ import annotations

from typing import Any

from ghostbox.donors.models import ErrorBody
from ghostbox.errors import DonorError

STATUS_OF_CODE = {
    "bad-request": 400,
    "not-paired": 401,
    "owner-only": 403,
    "request-expired": 403,
    "request-opening": 403,
    "revoked": 403,
    "suspended": 403,
    "token-expired": 403,
    "token-unknown": 403,
    "token-used": 403,
    "not-found": 404,
    "unknown-route": 404,
    "request-unknown": 404,
    "method-not-allowed": 405,
    "exists": 409,
    "busy": 409,
    "not-secure": 409,
    "request-decided": 409,
    "too-large": 413,
    "invalid": 422,
    "request-limit": 429,
    "too-many": 429,
    "internal": 500,
    "draining": 503,
    "unavailable": 503,
    "over-limit": 507,
    "too-small": 507,
}
"""The HTTP status of each code."""


class RequestRefused(DonorError):
    """Is raised for a request that the donor refuses; ``code`` is the HTTP API's word for the reason."""

    def __init__(self, message: str, *, code: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.code = code


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the description of a route's error answers, for FastAPI."""
    codes = {status: [code for code, status_of in STATUS_OF_CODE.items() if status_of == status] for status in statuses}
    return {status: {"model": ErrorBody, "description": f"Code {' or '.join(codes[status])}."} for status in statuses}
