"""The queue on its own."""

from types import SimpleNamespace

import pytest

from cache_daemon.api.values import Priority, State
from cache_daemon.fetch.queue import Queue
from modelpack.spec.errors import DiskError


class Fetches:
    def fetch(self, wanted, reporter, stop):
        if wanted.key.startswith("bad"):
            raise DiskError("cannot write")
        return wanted.key


def test_a_fetch_whose_end_cannot_be_noted_has_ended():
    """Who waits hears of it, and the threads live on: the records are on a disk in trouble."""

    def ended(job, error):
        raise DiskError("cannot remove the record: Read-only file system")

    queue = Queue(Fetches(), slots=1)
    queue.ended = ended
    for number in range(4):
        good, bad = (SimpleNamespace(key=f"{kind}-{number}", name=kind) for kind in ("good", "bad"))
        assert queue.submit(good, Priority.POD)[0].wait(10) == good.key
        job, _ = queue.submit(bad, Priority.POD)
        with pytest.raises(DiskError, match=r"^cannot write$"):
            job.wait(10)
        assert job.state is State.FAILED
    queue.close()
