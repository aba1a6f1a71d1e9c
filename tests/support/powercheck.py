"""What must be so of a node cache after a power loss, by the marks that it left before."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cache_daemon.api.values import Priority
from cache_daemon.fetch.fetcher import Fetcher
from cache_daemon.fetch.job import Job
from cache_daemon.fetch.request import Wanted
from cache_daemon.store.store import Store
from modelpack.transfer.stop import Stop
from tests.support.diskevents import Event, Marked
from tests.support.powerwork import ROOMY


@dataclass(frozen=True)
class Model:
    """What the store may show of a model: its files, and its chunk index if it has one."""

    files: Mapping[str, bytes]
    index: bytes | None


@dataclass(frozen=True)
class Promises:
    """What the store had promised: facts that were so, or not, whatever happens. No other is so."""

    sure: tuple[tuple[str, bool], ...]
    unsure: frozenset[str]

    @classmethod
    def by(cls, events: Sequence[Event]) -> "Promises":
        """Return what was promised when these events had happened."""
        sure: dict[str, bool] = {}
        unsure: set[str] = set()
        for event in events:
            if not isinstance(event, Marked):
                continue
            if "only" in event.what:
                unsure = set()
                sure = dict.fromkeys(sure, False) | dict.fromkeys(event.what["only"], True)
            for fact in event.what.get("unsure", ()):
                sure.pop(fact, None)
                unsure.add(fact)
            for fact, so in event.what.get("sure", {}).items():
                sure[fact] = so
                unsure.discard(fact)
        return cls(tuple(sorted(sure.items())), frozenset(unsure))

    def broken(self, facts: set[str]) -> list[str]:
        """Return how facts differ from what was promised."""
        so = {fact for fact, so in self.sure if so}
        lost = [f"lost: {fact}" for fact in sorted(so - facts)]
        return lost + [f"came back: {fact}" for fact in sorted(facts - so - self.unsure)]


def violations(path: Path, promises: Promises, expected: Mapping[str, Model]) -> list[str]:
    """Open a store after a power loss; return what is not as it was promised."""
    try:
        store = Store(path, ROOMY)
    except Exception as error:  # noqa: BLE001  # whatever it is, the node has no cache
        return [f"does not open: {error!r}"]
    try:
        keys = [one.key for one in store.snapshots()]
        facts = {f"snapshot {key}" for key in keys}
        facts |= {f"lease {one.id} {one.key}" for one in store.leases()}
        facts |= {f"pin {one.key}" for one in store.pins()}
        wrong = [one for key in keys for one in _differences(store, key, expected[key])]
        store.collect()
        return promises.broken(facts) + wrong
    finally:
        store.close()


def after_fetch(path: Path, wanted: Sequence[Wanted], expected: Mapping[str, Model]) -> list[str]:
    """Fetch all models into a store; return what is not as it was pushed."""
    store = Store(path, ROOMY)
    try:
        for one in wanted:
            Fetcher(store, jobs=2).fetch(one, Job(one, Priority.PREFETCH, 0), Stop())
        return [
            difference
            for one in wanted
            for difference in _differences(store, one.key, expected[one.key])
        ]
    finally:
        store.close()


def _differences(store: Store, key: str, expected: Model) -> list[str]:
    tree, files = store.tree(key), expected.files
    found = {str(path.relative_to(tree)): path for path in tree.rglob("*") if not path.is_dir()}
    if found.keys() != files.keys():
        return [f"other files: {sorted(found.keys() ^ files.keys())}"]
    wrong = [f"wrong bytes: {name}" for name in files if found[name].read_bytes() != files[name]]
    modes = {name: path.stat().st_mode & 0o777 for name, path in found.items()}
    wrong += [f"wrong mode: {name}" for name, mode in modes.items() if mode != 0o444]
    return wrong + ["wrong index"] * (store.index(key) != (expected.index or b""))
