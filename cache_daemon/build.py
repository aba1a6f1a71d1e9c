"""The daemon put together from its settings."""

import logging
import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from cache_daemon.config import Settings, read_token
from cache_daemon.fetch.access import Access, Policy
from cache_daemon.fetch.admission import algorithms, both, whole_layers
from cache_daemon.fetch.failover import Store as SiteStore
from cache_daemon.fetch.failover import open_store
from cache_daemon.fetch.fetcher import Fetcher
from cache_daemon.fetch.grants import Grants
from cache_daemon.fetch.limit import SourceLimits, Sources
from cache_daemon.fetch.node import Node
from cache_daemon.fetch.queue import Queue
from cache_daemon.fetch.trust import Trust
from cache_daemon.fetch.watched import Watched
from cache_daemon.mirror.app import Mirror
from cache_daemon.mirror.desk import Desk
from cache_daemon.mirror.shelf import Shelf
from cache_daemon.mirror.upstream import Upstream
from cache_daemon.observe.requests import Requests
from cache_daemon.observe.spans import trace_with
from cache_daemon.serve.app import create
from cache_daemon.serve.listen import Tls, bind, guarded
from cache_daemon.serve.servers import Beside, Server, unix_socket
from cache_daemon.space.room import Limits
from cache_daemon.store.proof import Prover
from cache_daemon.store.scrub import Scrub
from cache_daemon.store.store import Store
from cache_daemon.store.warm import Warmer
from modelpack.oci.settings import ConnectSettings

_MIRROR_THREADS: Final = 4
_log = logging.getLogger("cache_daemon")


@dataclass(frozen=True, slots=True)
class Daemon:
    """Everything that runs; `servers` answer for the control API, `mirror` for runtimes."""

    node: Node
    scrub: Scrub
    prover: Prover
    servers: list[Server]
    mirror: Beside | None

    def start(self) -> None:
        """Begin all that is not a server on the main loop."""
        self.node.start()
        self.prover.start()
        self.scrub.start()
        if self.mirror:
            self.mirror.start()

    def close(self) -> None:
        """End it; what was fetched so far is continued by the next daemon."""
        if self.mirror:
            self.mirror.close()
        self.scrub.close()
        self.prover.close()
        self.node.close()


def build(settings: Settings) -> Daemon:
    """Open the store and bind the sockets; raises BadStore, DiskError, InputError, OSError."""
    token = read_token(settings.token_file) if settings.token_file else None
    node = open_node(settings)
    scrub = Scrub(node.store, settings.scrub_bytes_per_second, settings.scrub_hours * 3600)
    prover = Prover(node.store, lambda: node.queue.busy)
    app = create(node, scrub)
    servers = [Server(Requests(app, "socket"), unix_socket(settings.socket))]
    if settings.listen:
        outer = Requests(guarded(app, token) if token else app, "listen")
        servers.append(Server(outer, bind(settings.listen), _tls(settings)))
    mirror = None
    if settings.mirror:
        runtimes = _mirror(settings, node, prover)
        threads = min(_MIRROR_THREADS, os.cpu_count() or 1)
        watched = Requests(runtimes, "mirror")
        mirror = Beside(watched, bind(settings.mirror), runtimes.close, threads)
    return Daemon(node, scrub, prover, servers, mirror)


def open_node(settings: Settings) -> Node:
    """Open the store and connect it with the registries; raises BadStore, DiskError."""
    limits = Limits(
        settings.keep_free,
        settings.most,
        prefetch_share=settings.prefetch_share,
        namespaces=settings.namespace_bytes,
    )
    store = Store(settings.root, limits)
    policy = Policy(
        tuple(settings.registries), tuple(settings.layouts), tuple(settings.trusted_hosts)
    )
    rules = [algorithms(settings.chunk_digests)]
    if settings.layer_check == "before":
        rules.append(whole_layers(store))
    sources = SourceLimits(
        connections=settings.connections_per_source,
        bytes_per_second=settings.bytes_per_second,
        prefetch_share=settings.prefetch_rate_share,
    )
    stores = [SiteStore(open_store(url)) for url in settings.site_stores]
    inner = Fetcher(store, settings.jobs, both(*rules), Sources(sources), stores)
    fetcher = Watched(inner, store.counts)
    queue = Queue(fetcher, slots=settings.slots, grace_seconds=settings.grace_seconds)
    opened = {"root": str(settings.root), "models": len(store.snapshots())}
    _log.info("store opened", extra=opened)
    grants = Grants(settings.grant_seconds, settings.max_stale)
    warmer = Warmer(store, settings.warm_keep_free)
    return Node(store, Access(policy, _connect(settings)), queue, grants, warmer)


def open_traces(endpoint: str) -> Callable[[], None]:
    """Record spans, if there is somebody to send them to; returns what ends that."""
    if not endpoint:
        return lambda: None
    from cache_daemon.observe.otlp import Otlp  # of an extra, 12 MB

    tracer = Otlp(endpoint)
    trace_with(tracer)
    return tracer.close


def _mirror(settings: Settings, node: Node, prover: Prover) -> Mirror:
    named = (*settings.registries, *settings.trusted_hosts, *settings.mirror_for)
    trust = Trust.of(one.partition("/")[0] for one in named)
    upstream = Upstream(replace(_connect(settings), guard=trust.check))
    desk = Desk(node, Shelf(node.store, prover), upstream)
    return Mirror(desk, settings.mirror_for, node.store.counts)


def _connect(settings: Settings) -> ConnectSettings:
    """Return how registries are talked to, without anybody's credentials."""
    return ConnectSettings(plain_http=settings.plain_http, ca_file=settings.ca_file)


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    return Tls(settings.tls_cert, settings.tls_key, settings.client_ca).context()
