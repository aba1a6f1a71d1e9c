"""What Prometheus sees: few numbers, named in docs/operations/metrics.md."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cache_daemon.fetch.node import Node
from cache_daemon.store.scrub import Scrub


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
        node, store = self._node, self._node.store
        disk = store.disk()
        gauges = {
            "modelpack_cache_models": ("Models on this node.", len(store.snapshots())),
            "modelpack_cache_used_bytes": ("Bytes of all models.", store.used()),
            "modelpack_cache_disk_free_bytes": ("Bytes free on the disk.", disk.free),
            "modelpack_cache_leases": ("Leases held.", len(store.leases())),
            "modelpack_cache_pins": ("Pins that count.", len(store.pins())),
        }
        for name, (words, value) in gauges.items():
            yield GaugeMetricFamily(name, words, value)
        states = GaugeMetricFamily("modelpack_cache_fetches", "Fetches by state.", labels=["state"])
        jobs = [job.state.value for job in node.queue.jobs()]
        for state in ("queued", "fetching", "failed", "cancelled"):
            states.add_metric([state], jobs.count(state))
        yield states
        moved = CounterMetricFamily(
            "modelpack_cache_received_bytes", "Bytes that came, for models that are here.",
            labels=["from"],
        )  # fmt: skip
        snapshots = store.snapshots()
        moved.add_metric(["registry"], sum(one.bytes_fetched for one in snapshots))
        moved.add_metric(["disk"], sum(one.bytes_reused for one in snapshots))
        yield moved
        for name, words, value in (
            ("modelpack_cache_scrubbed_bytes", "Bytes read again.", self._scrub.bytes_read),
            ("modelpack_cache_damaged_files", "Files found damaged.", self._scrub.damaged),
        ):
            counter = CounterMetricFamily(name, words)
            counter.add_metric([], value)
            yield counter
