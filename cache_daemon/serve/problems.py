"""Errors over HTTP: one place that says which status an error is (RFC 9457)."""

from typing import Final

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from cache_daemon.api.errors import (
    BadStore,
    Cancelled,
    Draining,
    InUse,
    NoSpace,
    NoSuchLease,
    NoSuchModel,
)
from modelpack.spec.errors import (
    ArtifactError,
    Denied,
    DiskError,
    InputError,
    IntegrityError,
    ModelpackError,
    NotFound,
    RegistryError,
    Unauthorized,
    Unavailable,
)

_STATUSES: Final[tuple[tuple[type[ModelpackError], int], ...]] = (
    (NoSuchModel, 404),
    (NoSuchLease, 404),
    (InUse, 409),
    (Cancelled, 409),
    (NoSpace, 507),
    (Draining, 503),
    (BadStore, 500),
    (NotFound, 404),
    (Unauthorized, 403),
    (Denied, 403),
    (Unavailable, 503),
    (RegistryError, 502),
    (IntegrityError, 502),
    (ArtifactError, 422),
    (InputError, 400),
    (DiskError, 507),
)


def status_of(error: Exception) -> int:
    """Return the HTTP status of an error; 500 for what is a bug."""
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), 500)


def problem(error: ModelpackError) -> dict[str, object]:
    """Return an error in words, for machines and people."""
    found: dict[str, object] = {
        "type": f"https://modelpack.dev/problems/{type(error).__name__}",
        "title": type(error).__name__,
        "status": status_of(error),
        "detail": str(error),
        "next": error.hint,
        "retry": not error.permanent,
    }
    if isinstance(error, NoSpace):
        found["shortfall"] = error.shortfall
    return found


def install(app: FastAPI) -> None:
    """Answer every ModelpackError with its problem document."""

    @app.exception_handler(ModelpackError)
    def answer(_request: Request, error: ModelpackError) -> JSONResponse:
        headers = {}
        if isinstance(error, Unavailable) and error.retry_after:
            headers["Retry-After"] = str(round(error.retry_after))
        return JSONResponse(
            problem(error), status_of(error), headers, media_type="application/problem+json"
        )
