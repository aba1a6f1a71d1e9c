"""Spans to OpenTelemetry over OTLP/HTTP; of the extra `traces`, imported where it is asked for."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version

from cache_daemon.observe.context import REQUEST, TRACEPARENT
from cache_daemon.observe.logs import redacted
from cache_daemon.observe.spans import Span
from modelpack.spec.errors import InputError

try:
    from opentelemetry.context import Context
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace import Span as Recorded
    from opentelemetry.trace import Status, StatusCode, get_current_span
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as error:
    raise InputError(
        f"otlp_endpoint: {error.name} is not installed",
        hint="pip install 'modelpack-oci[daemon,traces]'",
    ) from error

_SECONDS = 5  # for one request to the collector
_NANO = 1_000_000_000


class Otlp:
    """A `Tracer`. What the collector does not take is lost; nothing waits for it."""

    def __init__(self, endpoint: str) -> None:
        """`endpoint` is the collector's, without /v1/traces: http://collector:4318."""
        about = {
            "service.name": "modelpack-cache-daemon",
            "service.version": version("modelpack-oci"),
        }
        self._provider = TracerProvider(resource=Resource.create(about), shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=_SECONDS)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("cache_daemon")

    @contextmanager
    def span(self, name: str, what: Mapping[str, str | int]) -> Iterator[Span]:
        """Record a block, with the text of the error it ended with; no stack, no secret."""
        with self._tracer.start_as_current_span(
            name, _parent(), attributes=_with_request(what),
            record_exception=False, set_status_on_exception=False,
        ) as recorded:  # fmt: skip
            try:
                yield _Noted(recorded)
            except Exception as error:
                words = redacted(f"{type(error).__name__}: {error}")
                recorded.set_status(Status(StatusCode.ERROR, words))
                raise

    def past(self, name: str, began: float, ended: float, what: Mapping[str, str | int]) -> None:
        """Record what is over."""
        attributes = _with_request(what)
        recorded = self._tracer.start_span(
            name, _parent(), attributes=attributes, start_time=int(began * _NANO)
        )
        recorded.end(int(ended * _NANO))

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


class _Noted:
    def __init__(self, recorded: Recorded) -> None:
        self._recorded = recorded

    def note(self, **what: str | float) -> None:
        """Say something about it."""
        self._recorded.set_attributes(what)


def _parent() -> Context | None:
    """Return the sender's span where none of ours is under way."""
    given = TRACEPARENT.get()
    if not given or get_current_span().get_span_context().is_valid:
        return None
    return TraceContextTextMapPropagator().extract({"traceparent": given})


def _with_request(what: Mapping[str, str | int]) -> dict[str, str | int]:
    request = REQUEST.get()
    return {**what, **({"request": request} if request else {})}
