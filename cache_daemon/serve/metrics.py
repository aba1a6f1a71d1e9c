"""What Prometheus sees: few numbers, named in docs/operations/metrics.md."""

from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from cache_daemon.fetch.node import Node
from cache_daemon.observe.counts import Counter, Counts, Histogram
from cache_daemon.store.scrub import Scrub
from cache_daemon.store.store import Store
from modelpack.spec.errors import DiskError

_PREFIX: Final = "modelpack_cache_"


class Metrics(Collector):
    """Reads the node when it is asked; keeps no second set of numbers."""

    def __init__(self, node: Node, scrub: Scrub) -> None:
        self._node = node
        self._scrub = scrub
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def text(self) -> bytes:
        """Return the text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics (see Collector)."""
        node = self._node
        words = "1 if new models can come, 0 while draining, or if the disk does not take them."
        yield _gauge("ready", words, _ready(node))
        yield from _space(node.store)
        states = [job.state.value for job in node.queue.jobs()]
        under_way = {state: states.count(state) for state in ("queued", "fetching")}
        yield _gauges("fetches", "Fetches under way by state.", "state", under_way)
        yield _gauges(
            "waiting_prefetches", "Prefetches that wait, by what for.", "for", node.waiting()
        )
        yield from _counters(node.store.counts)
        scrubbed = CounterMetricFamily(f"{_PREFIX}scrubbed_bytes_total", "Bytes read again.")
        scrubbed.add_metric([], self._scrub.bytes_read)
        yield scrubbed
        counts = node.store.counts
        yield _histogram(
            "fetch_duration_seconds", "How long fetches took, by outcome.", counts.fetches
        )
        yield _histogram(
            "lease_duration_seconds", "How long asking for a lease took, by outcome.", counts.leases
        )


def _ready(node: Node) -> bool:
    try:
        node.store.check_writable()
    except DiskError:
        return False
    return not node.queue.draining


def _space(store: Store) -> Iterator[Metric]:
    disk = store.disk()
    yield _gauge("models", "Models on this node.", len(store.snapshots()))
    yield _gauge("leases", "Leases held.", len(store.leases()))
    yield _gauge("pins", "Pins that count.", len(store.pins()))
    yield _gauge("used_bytes", "Bytes of all models.", store.used())
    yield _gauge("held_bytes", "Bytes of models with a lease or pin.", store.held())
    yield _gauge("capacity_bytes", "Bytes that models may take now.", store.capacity())
    yield _gauge("disk_free_bytes", "Bytes free on the disk.", disk.free)
    yield _gauge("disk_size_bytes", "Bytes of the disk.", disk.total)


def _counters(counts: Counts) -> Iterator[Metric]:
    for name, words, label, counter in (
        ("evictions_total", "Models evicted, by reason.", "reason", counts.evictions),
        ("refusals_total", "What was refused, by reason.", "reason", counts.refusals),
        ("received_bytes_total", "Bytes that came, by from where.", "from", counts.received_bytes),
        ("layers_total", "Layers whose SHA-256 was computed.", "result", counts.layers),
        ("damaged_files_total", "Files found damaged.", "", counts.damaged_files),
        ("store_errors_total", "Errors of the disk.", "", counts.store_errors),
        ("mirror_answers_total", "Blobs the mirror sent.", "source", counts.mirror_answers),
        ("mirror_bytes_total", "Their bytes, of files.", "source", counts.mirror_bytes),
    ):
        yield _counter(name, words, label, counter)


def _gauge(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(_PREFIX + name, words, value)


def _gauges(name: str, words: str, label: str, values: dict[str, int]) -> Metric:
    found = GaugeMetricFamily(_PREFIX + name, words, labels=[label])
    for value, count in values.items():
        found.add_metric([value], count)
    return found


def _counter(name: str, words: str, label: str, counter: Counter) -> Metric:
    found = CounterMetricFamily(_PREFIX + name, words, labels=[label] if label else [])
    for value, count in counter.read().items():
        found.add_metric([value] if label else [], count)
    return found


def _histogram(name: str, words: str, histogram: Histogram) -> Metric:
    found = HistogramMetricFamily(_PREFIX + name, words, labels=["outcome"])
    names = [*map(str, histogram.bounds), "+Inf"]
    for outcome, (upto, total) in histogram.read().items():
        found.add_metric([outcome], list(zip(names, map(float, upto), strict=True)), total)
    return found
