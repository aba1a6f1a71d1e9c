"""Errors over HTTP: one place that says which status an error is (RFC 9457)."""

import logging
from collections.abc import Mapping
from typing import Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from cache_daemon.api.errors import (
    BadStore,
    Cancelled,
    Draining,
    InUse,
    NoSpace,
    NoSuchLease,
    NoSuchModel,
    Refused,
)
from cache_daemon.observe.context import REQUEST
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

_log = logging.getLogger("cache_daemon.serve")
_STATUSES: Final[tuple[tuple[type[ModelpackError], int], ...]] = (
    (NoSuchModel, 404),
    (NoSuchLease, 404),
    (InUse, 409),
    (Cancelled, 409),
    (Refused, 403),
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
    """Answer whatever goes wrong with a problem document."""

    @app.exception_handler(ModelpackError)
    def refuse(_request: Request, error: ModelpackError) -> Response:
        headers = {}
        if isinstance(error, Unavailable) and error.retry_after:
            headers["Retry-After"] = str(round(error.retry_after))
        words = {"kind": type(error).__name__, "status": status_of(error), "error": str(error)}
        _log.info("refused", extra=words)
        return _answer(problem(error), headers)

    @app.exception_handler(RequestValidationError)
    def correct(_request: Request, error: RequestValidationError) -> Response:
        wrong = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        return _answer(_plain("BadRequest", 422, "; ".join(wrong)))

    @app.exception_handler(HTTPException)
    def miss(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = ", ".join(sorted(_methods(app, request)))
        return _answer(_plain("HTTPException", error.status_code, error.detail), headers)


def _plain(title: str, status: int, detail: str) -> dict[str, object]:
    following = "see /v1/openapi.json"
    return {
        "type": "about:blank", "title": title, "status": status, "detail": detail,
        "next": following, "retry": False,
    }  # fmt: skip


def _answer(found: dict[str, object], headers: Mapping[str, str] | None = None) -> Response:
    if request := REQUEST.get():
        found = {**found, "instance": request}
    return JSONResponse(
        found, int(str(found["status"])), headers, media_type="application/problem+json"
    )


def _methods(app: FastAPI, request: Request) -> set[str]:
    """Return all methods of a path: Starlette knows those of the first route that fits."""
    found: set[str] = set()
    for route in app.routes:
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE:
            found |= route.methods or set()
    return found
