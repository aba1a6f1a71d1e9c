"""The power fails: what a disk may have forgotten, at every instant of a recorded day.

`tests.support.powerwork` is the day, `tests.support.powerloss` says what is assumed of the disk.
"""

import json
import os
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cache_daemon.fetch.access import Access, Policy
from cache_daemon.fetch.request import Wanted, resolve
from modelpack.checkout import artifact, journal
from modelpack.spec.reference import Reference
from modelpack.state.database import Database
from modelpack.state.digests import DigestCache
from modelpack.verbs.push import PushOptions, push
from modelpack.verbs.session import Session
from tests.conftest import fast
from tests.support.diskevents import Written
from tests.support.disklog import DiskLog
from tests.support.powercheck import Model, Promises, after_fetch, violations
from tests.support.powerloss import Disk, Left, Loss
from tests.support.straced import record
from tests.support.weights import make_model

STORE = "var/cache/store"  # two directories that are not there at first
VARIANTS = ("ordered", "unordered")


@dataclass
class Day:
    """A recorded day, and what is needed to judge any end of it."""

    base: Path
    log: DiskLog
    wanted: list[Wanted]
    models: dict[str, Model]
    boots: list[Path]

    def promises(self, cut: int) -> Promises:
        """Return what the store had promised by then."""
        return Promises.by(self.log.events[:cut])

    def found(self, disk: Disk, left: Left, cut: int, *, fetch: bool = False) -> list[str]:
        """Return what is wrong with what a power loss has left."""
        directory = self.base / "after"
        try:
            disk.restore(left, directory)
            wrong = violations(directory / STORE, self.promises(cut), self.models)
            if fetch and not wrong:
                wrong = after_fetch(directory / STORE, self.wanted, self.models)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        return wrong


def _versions(registry, directory: Path) -> tuple[list[str], list[Path]]:
    """Push three versions with a shard in common, and one whose index is not looked at."""
    name = f"t/power-{os.urandom(3).hex()}"
    models = [make_model(directory / f"m{number}", megabytes=1) for number in range(4)]
    database = Database(directory / "state.sqlite")
    refs = [f"{registry.host}/{name}:v{number}" for number in range(4)]
    for number, (model, ref) in enumerate(zip(models, refs, strict=True)):
        shard = model / "model-00001-of-00002.safetensors"
        data = bytearray(shard.read_bytes())
        data[-1 - number] ^= 1
        shard.write_bytes(data)
        session = Session(fast(), database, DigestCache(database), jobs=3)
        push(str(model), Reference.parse(ref), session, PushOptions(modelpack_form=number == 2))
    database.close()
    return refs, models


def _resolved(host: str, ref: str) -> Wanted:
    access = Access(Policy((host,)), fast())
    return resolve(Reference.parse(ref), lambda one: access.repository(one, None), (), ())


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Iterator[Path]:
    """A place for a thousand stores: tmpfs, where there is one."""
    directory = tmp_path_factory.mktemp("power")
    where = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else directory
    made = Path(tempfile.mkdtemp(prefix="modelpack-power-", dir=where)).resolve()
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def day(registry, base, tmp_path_factory) -> Iterator[Day]:
    """Live the day, once."""
    directory = tmp_path_factory.mktemp("power")
    refs, models = _versions(registry, directory)
    wanted = [_resolved(registry.host, ref) for ref in refs]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artifact, "_index_beside", lambda *_: None)
        wanted[2] = _resolved(registry.host, refs[2])
    expected = {
        one.key: Model(
            {str(p.relative_to(m)): p.read_bytes() for p in m.rglob("*") if p.is_file()},
            one.artifact.index.encode() if one.artifact.index else None,
        )
        for one, m in zip(wanted, models, strict=True)
    }
    boots = [directory / f"boot-{number}" for number in range(3)]
    for number, boot in enumerate(boots):
        boot.write_text(f"boot-{number}\n")
    work = directory / "work.json"
    work.write_text(json.dumps({
        "root": str(base / "disk" / STORE), "host": registry.host, "refs": refs,
        "keys": {ref: one.key for ref, one in zip(refs, wanted, strict=True)},
        "boots": list(map(str, boots)),
    }))  # fmt: skip
    (base / "disk").mkdir()
    calls = record(
        [sys.executable, "-m", "tests.support.powerwork", str(work)], directory / "calls"
    )
    log = DiskLog(base / "disk", calls)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "_BOOT_ID", boots[2])
        yield Day(base, log, wanted, expected, boots)


def _look(day: Day, cuts: Iterable[int], seeds: int, fetched: int) -> list[str]:
    """Return what is wrong after losses at these instants; models are fetched to one in so many."""
    disk, seen, wrong = Disk(day.log), set(), []
    losses = [Loss("nothing"), Loss("everything")]
    losses += [Loss(kind, seed) for seed in range(seeds) for kind in VARIANTS]
    for cut in cuts:
        for loss in losses:
            left = disk.after(cut, loss)
            case = (left, day.promises(cut))
            if (known := hash(case)) not in seen:
                seen.add(known)
                found = day.found(disk, left, cut, fetch=len(seen) % fetched == 0)
                wrong += [f"{loss} at {cut}: {one}" for one in found]
    print(f"{len(seen)} different disks")
    return wrong


def test_the_disk_is_understood(day):
    """With nothing forgotten the log leads to the very directory that the day has left."""
    disk = Disk(day.log)
    directory = day.base / "after"
    disk.restore(disk.after(len(day.log.events), Loss("everything")), directory)
    assert _listing(directory) == _listing(day.base / "disk")
    shutil.rmtree(directory)


def test_nothing_promised_is_lost(day):
    """Just before and after every fsync, and at other instants, nothing is lost and nothing wrong."""
    cuts = Disk(day.log).boundaries()
    others = sorted(set(range(len(day.log.events))).difference(cuts))
    cuts += random.Random(1).sample(others, min(len(others), 200))
    assert _look(day, cuts, seeds=1, fetched=37) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_nothing_promised_is_lost_at_any_instant(day):
    """The same at every instant, with many ways to forget."""
    assert _look(day, range(len(day.log.events) + 1), seeds=12, fetched=19) == []


@pytest.mark.parametrize(
    ("forgotten", "consequence"),
    [
        (r"/partial/.*/\d+$", "wrong bytes"),  # staged files, before they are adopted
        (r"/partial/.*/\d+$", "wrong mode"),
        (r"/files/..$", "lost: snapshot"),  # the name of an adopted file
        (r"/files$", "lost: snapshot"),
        (r"/snapshots$", "lost: snapshot"),  # the name of a published snapshot
        (r"/snapshots$", "came back: snapshot"),  # and of a removed one
        (r"/tree(/|$)", "lost: snapshot"),  # the names in it
        (r"/\.snapshot\.json$", "lost: snapshot"),
        (r"/\.index$", "wrong index"),
        (r"/leases$", "lost: lease"),
        (r"/leases$", "came back: lease"),
        (r"/leases/\.", "lost: lease"),
        (r"/pins$", "lost: pin"),
        (r"/pins$", "came back: pin"),
        (r"/pins/\.", "lost: pin"),
        (r"/\.format\.json$", "does not open"),
        (r"^var/cache$", "lost: "),  # the names that lead to the store
        (r"^$", "lost: "),
    ],
)
def test_a_forgotten_fsync_is_found(day, forgotten, consequence):
    """On a disk that ignores one kind of fsync something is lost or wrong: these tests can fail."""
    disk = Disk(day.log, lambda sync: re.search(forgotten, sync.path) is not None)
    cuts = disk.boundaries()
    assert any(
        found.startswith(consequence)
        for seed in range(3)
        for cut in random.Random(seed).sample(cuts, len(cuts))
        for kind in ("nothing", *VARIANTS)
        for found in day.found(disk, disk.after(cut, Loss(kind, seed)), cut)
    )


def test_a_journal_of_before_is_not_trusted(day, monkeypatch):
    """If the machine is not noticed to have been restarted, wrong bytes are shown: this matters."""
    monkeypatch.setattr(journal, "_BOOT_ID", day.boots[0])
    disk = Disk(day.log)
    staged = [at for at, one in enumerate(day.log.events) if _is_staged(one)]
    assert any(
        "wrong bytes" in found
        for cut in staged
        for kind in VARIANTS
        for found in day.found(disk, disk.after(cut + 1, Loss(kind)), cut + 1, fetch=True)
    )


def _is_staged(event: object) -> bool:
    """Whether it is a record of a journal: a part is complete."""
    return isinstance(event, Written) and len(event.data) == 8


def _listing(directory: Path) -> dict[str, tuple]:
    """Return all that can be seen of a directory, but for SQLite's memory that is no file."""
    found = {}
    for path in directory.rglob("*"):
        status = path.lstat()
        what = path.read_bytes() if path.is_file() else b""
        if not path.name.endswith("-shm"):
            links = status.st_nlink if path.is_file() else 0
            found[str(path.relative_to(directory))] = (status.st_mode, links, what)
    return found
