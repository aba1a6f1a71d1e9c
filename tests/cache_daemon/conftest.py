import hashlib
import signal

import pytest

from cache_daemon.api.values import Snapshot, StoredFile, snapshot_key
from cache_daemon.space.room import Limits
from cache_daemon.store.store import Store
from tests.cache_daemon.process import Daemon

ROOMY = Limits(keep_free=0.0, inodes_free=0.0)


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "store", ROOMY)
    yield opened
    opened.close()


def content(name: str, size: int) -> bytes:
    """Bytes that are always the same for a name."""
    block = hashlib.sha256(name.encode()).digest()
    return (block * (size // 32 + 1))[:size]


def identity(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def publish(store, name, files, *, seconds=1.0, domain="r/d"):
    """Put a snapshot of files (path -> bytes) into the store, as the fetcher does."""
    stored = tuple(StoredFile(path, identity(data), len(data)) for path, data in files.items())
    snapshot = Snapshot(
        key=snapshot_key(name, files), reference=f"r/d/m:{name}", repository="r/d/m", digest=name,
        domain=domain, files=stored, bytes_total=sum(map(len, files.values())), bytes_fetched=0,
        bytes_reused=0, fetch_seconds=seconds, created=1.0,
    )  # fmt: skip
    store.begin(snapshot.key, snapshot.ids)
    try:
        absent = {
            identity(data): data
            for data in files.values()
            if not store.files.has(identity(data), len(data))
        }
        store.reserve(snapshot.key, sum(map(len, absent.values())))
        area = store.partial(snapshot.key)
        area.mkdir(parents=True, exist_ok=True)
        staged = {}
        for id_, data in absent.items():
            staged[id_] = area / id_
            staged[id_].write_bytes(data)
        store.publish(snapshot, staged, None)
        store.drop_partial(snapshot.key)
    finally:
        store.end(snapshot.key)
    return snapshot


def read(store, key):
    tree = store.tree(key)
    return {
        str(path.relative_to(tree)): path.read_bytes() for path in tree.rglob("*") if path.is_file()
    }


@pytest.fixture
def daemon(tmp_path):
    daemons = []

    def make(*options, name="d"):
        (tmp_path / name).mkdir(exist_ok=True)
        daemons.append(Daemon(tmp_path / name, *options))
        return daemons[-1]

    yield make
    for one in daemons:
        if one.process is not None and one.process.poll() is None:
            one.stop(signal.SIGKILL)
