"""A day in the life of a node cache, to be recorded: run as a program of its own.

Each life is a process that opens the store, and ends or is killed; all share one machine that is
not restarted, but for the last. Marks say what the store has promised: `unsure` of these facts from
now on, `sure` of those. A fact is "snapshot KEY", "lease ID KEY" or "pin KEY".
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from cache_daemon.api.values import Owner
from cache_daemon.fetch.access import Access, Policy
from cache_daemon.fetch.fetcher import Fetcher
from cache_daemon.fetch.node import Ask, Node
from cache_daemon.fetch.queue import Queue
from cache_daemon.space.room import Limits
from cache_daemon.store.store import Store
from modelpack.checkout import artifact, journal
from modelpack.checkout.staging import Staging
from tests.support.diskevents import mark

ROOMY = Limits(keep_free=0.0, inodes_free=0.0)


class Daemon:
    """A node that says what it promises."""

    def __init__(self, root: Path, host: str, keys: dict[str, str]) -> None:
        self.store = Store(root, ROOMY)
        queue = Queue(Fetcher(self.store, jobs=2), slots=1)
        self.node = Node(self.store, Access(Policy((host,))), queue)
        self.keys = keys
        self.shown()

    def facts(self) -> set[str]:
        """Return everything that is so."""
        return (
            {f"snapshot {one.key}" for one in self.store.snapshots()}
            | {f"lease {one.id} {one.key}" for one in self.store.leases()}
            | {f"pin {one.key}" for one in self.store.pins()}
        )

    def shown(self) -> None:
        """What a daemon shows when it has started is so, whatever killed the one before."""
        mark(only=sorted(self.facts()))

    @contextmanager
    def changes(self, *facts: str, to: bool = True):
        """Something is done that makes facts true or false; at the end they are."""
        mark(unsure=facts)
        yield
        mark(sure=dict.fromkeys(facts, to))

    def fetch(self, ref: str) -> None:
        with self.changes(f"snapshot {self.keys[ref]}"):
            key = self.node.ensure(Ask(ref=ref)).key
            job = self.node.queue.job(key)
            if job is not None:
                job.wait(60)
        assert key == self.keys[ref]

    def lease(self, id_: str, ref: str) -> None:
        with self.changes(f"snapshot {self.keys[ref]}", f"lease {id_} {self.keys[ref]}"):
            self.node.lease(id_, Ask(ref=ref), Owner("pod", id_), 60)

    def release(self, id_: str, ref: str) -> None:
        with self.changes(f"lease {id_} {self.keys[ref]}", to=False):
            self.store.release(id_)

    def pin(self, ref: str) -> None:
        with self.changes(f"pin {self.keys[ref]}"):
            self.node.pin(self.keys[ref], reason="because")

    def unpin(self, ref: str) -> None:
        with self.changes(f"pin {self.keys[ref]}", to=False):
            self.node.unpin(self.keys[ref])

    def remove(self, ref: str) -> None:
        with self.changes(f"snapshot {self.keys[ref]}", to=False):
            self.node.remove(self.keys[ref])

    def evict(self) -> None:
        """Make room by all that nobody holds."""
        held = {one.key for one in [*self.store.leases(), *self.store.pins()]}
        free = [one.key for one in self.store.snapshots() if one.key not in held]
        assert free
        with self.changes(*(f"snapshot {key}" for key in free), to=False):
            assert set(self.store.collect(1 << 40).snapshots) == set(free)

    def quarantine(self, ref: str) -> None:
        """A file that no other model has is found damaged."""
        links = self.store.links()
        ids = {id_ for id_ in self.store.snapshot(self.keys[ref]).ids if links[id_] == 1}
        with self.changes(f"snapshot {self.keys[ref]}", to=False):
            assert self.store.quarantine(sorted(ids)[:1]) == [self.keys[ref]]

    def close(self) -> None:
        self.node.close()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before_sync_of(part: str) -> None:
    """From now on: be killed before something is synced that has this in its path, `$` at its end."""
    real = os.fsync

    def fsync(fd: int) -> None:
        if part in f"{os.readlink(f'/proc/self/fd/{fd}')}$":
            _die()
        real(fd)

    os.fsync = fsync


def after_adopting() -> None:
    """From now on: be killed when one more file has got its name in the store."""
    real = os.link

    def link(source: Path, target: Path) -> None:
        real(source, target)
        if "/files/" in str(target):
            _die()

    os.link = link


def after_chunks(number: int) -> None:
    """From now on: be killed when so many chunks are staged."""
    real, left = Staging.complete, [number]

    def complete(self: Staging, part) -> None:
        real(self, part)
        left[0] -= 1
        if not left[0]:
            _die()

    Staging.complete = complete


def life(begin: Callable[[], Daemon], what: Callable[[Daemon], object], *, killed: bool = False):
    """Run a daemon in a process of its own."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            daemon = begin()
            what(daemon)
            daemon.close()
            code = 0
        finally:
            sys.stderr.flush() if code == 0 else sys.excepthook(*sys.exc_info())
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    ended = -os.waitstatus_to_exitcode(status)
    assert ended == (signal.SIGKILL if killed else 0), f"ended with {ended}"


def main(root: Path, host: str, refs: list[str], keys: dict[str, str], boots: list[Path]) -> None:
    """Live."""
    journal._BOOT_ID = boots[0]
    one, two, whole, last = refs
    indexed = artifact._index_beside
    artifact._index_beside = lambda *_: None if whole_only[0] else indexed(*_)
    whole_only = [False]

    def open_() -> Daemon:
        return Daemon(root, host, keys)

    def dying(condition: Callable[[], None], *steps: Callable[[Daemon], object]):
        def live(daemon: Daemon) -> None:
            condition()
            for step in steps:
                step(daemon)

        life(open_, live, killed=True)

    def living(*steps: Callable[[Daemon], object]) -> None:
        life(open_, lambda daemon: [step(daemon) for step in steps])

    def never_opened() -> Daemon:
        before_sync_of(".format.json")
        return open_()

    life(never_opened, lambda _: None, killed=True)
    dying(lambda: after_chunks(2), lambda d: d.fetch(one))
    living(
        lambda d: d.fetch(one), lambda d: d.lease("pod-1", one), lambda d: d.pin(one),
        lambda d: d.lease("pod-2", two), lambda d: d.release("pod-2", two),
    )  # fmt: skip
    dying(lambda: before_sync_of("/leases$"), lambda d: d.lease("pod-3", two))
    dying(
        lambda: None, lambda d: d.lease("pod-3", two), lambda _: before_sync_of("/leases$"),
        lambda d: d.release("pod-3", two),
    )  # fmt: skip
    dying(lambda: before_sync_of("/snapshots$"), lambda d: d.remove(two))
    dying(lambda: before_sync_of("/pins$"), lambda d: d.unpin(one))
    whole_only[0] = True
    dying(after_adopting, lambda d: d.fetch(whole))
    dying(after_adopting, lambda d: d.fetch(whole))
    dying(lambda: before_sync_of(f"snapshots/.new-{keys[whole]}"), lambda d: d.fetch(whole))
    living(lambda d: d.fetch(whole), lambda d: d.pin(whole))
    whole_only[0] = False
    dying(lambda: before_sync_of("/snapshots$"), lambda d: d.fetch(two))
    living(
        lambda d: d.fetch(two), lambda d: d.quarantine(two), lambda d: d.lease("pod-4", two),
        lambda d: d.release("pod-4", two), lambda d: d.evict(), lambda d: d.fetch(two),
    )  # fmt: skip
    dying(lambda: after_chunks(2), lambda d: d.fetch(last))
    journal._BOOT_ID = boots[1]
    mark(rebooted=True)
    living(lambda d: d.fetch(last), lambda d: d.release("pod-1", one), lambda d: d.remove(last))


if __name__ == "__main__":
    os.umask(0o022)
    given = json.loads(Path(sys.argv[1]).read_text())
    main(
        Path(given["root"]), given["host"], given["refs"], given["keys"],
        [Path(path) for path in given["boots"]],
    )  # fmt: skip
