"""What one registry is asked for at a time, by all fetches together."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_daemon.api.errors import Cancelled
from cache_daemon.api.values import Priority
from cache_daemon.fetch.access import Access, Policy
from cache_daemon.fetch.bucket import Bucket, Share
from cache_daemon.fetch.fetcher import Fetcher
from cache_daemon.fetch.job import Job
from cache_daemon.fetch.limit import Reader, SourceLimits, Sources
from cache_daemon.fetch.request import resolve
from modelpack.spec.errors import Unavailable
from modelpack.spec.limits import MIB
from modelpack.spec.manifest import describe
from modelpack.spec.reference import Reference
from modelpack.transfer.stop import Stop
from modelpack.verbs.push import PushOptions, push
from tests.conftest import fast
from tests.support.processes import wait_until
from tests.support.weights import make_model, tree

DATA = bytes(8 * MIB)
BLOB = describe("application/octet-stream", DATA)


class Clock:
    """Time that passes only where somebody waits for it."""

    def __init__(self) -> None:
        self.now = 0.0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        with self._lock:
            return self.now

    def stop(self) -> Stop:
        """Return a stop whose waits take no time."""
        clock = self

        class Instant(Stop):
            def wait(self, seconds):
                with clock._lock:
                    clock.now += seconds
                return self.is_set()

        return Instant()


class Memory:
    """A source that tells who reads what, and how many streams are open."""

    name = "memory"

    def __init__(self, heard=lambda size: None) -> None:
        self.heard = heard
        self.open_now = self.most = 0
        self._lock = threading.Lock()

    @contextmanager
    def open(self, blob, offset, length):
        with self._lock:
            self.open_now += 1
            self.most = max(self.most, self.open_now)
        left = [length]

        class Stream:
            def read(_self, size):  # noqa: N805
                taken = min(size, left[0])
                left[0] -= taken
                self.heard(taken)
                return bytes(taken)

        try:
            yield Stream()
        finally:
            with self._lock:
                self.open_now -= 1


def limits(**more):
    return SourceLimits(**{"patience": 60.0, **more})


def reader(*, urgent=False, stop=None):
    return Reader(stop or Stop(), lambda: urgent)


def read_all(source, size=MIB, length=8 * MIB):
    done = 0
    with source.open(BLOB, 0, length) as stream:
        while part := stream.read(size):
            done += len(part)
    return done


@given(
    st.integers(1, 10**10),
    st.lists(st.tuples(st.integers(1, MIB), st.floats(0, 3)), min_size=1, max_size=60),
)
def test_a_bucket_keeps_its_rate(rate, asked):
    """In any span of time: the rate, and the burst; and nobody waits longer than need be."""
    clock = Clock()
    bucket = Bucket(rate, clock)
    came = []
    for size, pause in asked:
        size = min(size, bucket.slice)  # noqa: PLW2901
        came.append((clock.now + bucket.reserve(size), size))
        clock.now += pause
    for first in range(len(came)):
        for last in range(first, len(came)):
            seconds = came[last][0] - came[first][0]
            total = sum(size for _, size in came[first : last + 1])
            assert total <= bucket.burst + rate * seconds + 1 + 1e-6 * total
    everything = sum(size for _, size in came)
    assert came[-1][0] <= clock.now + everything / rate + 1e-6


@given(st.floats(0, 0.99), st.lists(st.tuples(st.booleans(), st.integers(1, MIB)), max_size=60))
def test_a_share_is_kept(share, asked):
    """Beside urgent bytes no more than the share of all bytes comes."""
    counts = {True: 0, False: 0}
    kept = Share(share)
    for urgent, size in asked:
        if urgent:
            kept.earn(size)
            counts[True] += size
        elif kept.take(size):
            counts[False] += size
        assert counts[False] * (1 - share) <= counts[True] * share + 1


def test_no_share_is_all():
    """A share of one is no bound."""
    assert Share(1.0).take(MIB)


def test_streams_are_counted():
    """However many threads there are, no more streams are open than allowed, and all are served."""
    memory = Memory()
    sources = Sources(limits(connections=3))
    with ThreadPoolExecutor(12) as pool:
        found = pool.map(
            lambda n: read_all(sources.limited(memory, "r", reader(urgent=n % 2 == 0)), length=MIB),
            range(60),
        )
        assert list(found) == [MIB] * 60
    assert memory.most <= 3
    assert memory.open_now == 0


def test_hosts_do_not_share():
    """What one registry is asked does not delay another."""
    memory, sources = Memory(), Sources(limits(connections=1))
    one, other = (sources.limited(memory, host, reader()) for host in "ab")
    with one.open(BLOB, 0, 1), other.open(BLOB, 0, 1):
        assert memory.open_now == 2


def test_half_of_the_connections_are_for_pods():
    """Prefetches wait for each other; a pod finds a free one."""
    memory, sources = Memory(), Sources(limits(connections=4))
    prefetch = sources.limited(memory, "r", reader())
    pod = sources.limited(memory, "r", reader(urgent=True))
    with prefetch.open(BLOB, 0, 1), prefetch.open(BLOB, 0, 1), ThreadPoolExecutor(1) as pool:
        third = pool.submit(read_all, prefetch)
        wait_until(lambda: prefetch._host._waiting)
        assert read_all(pod, length=MIB) == MIB
        assert not third.done()
        assert memory.most == 3
        prefetch._reader.stop.set(Cancelled("enough"))
        with pytest.raises(Cancelled):
            third.result(60)


@pytest.mark.parametrize("error", [Cancelled("enough"), None])
def test_a_stopped_fetch_does_not_wait(error):
    """For no connection, which it is refused, nor for bandwidth or pods; it ends what it began."""
    memory, sources = Memory(), Sources(limits(connections=2, bytes_per_second=1))
    stopped = reader()
    with sources.limited(memory, "r", reader(urgent=True)).open(BLOB, 0, 1):
        with ThreadPoolExecutor(3) as pool:
            waiting = [
                pool.submit(read_all, sources.limited(memory, "r", stopped)) for _ in range(3)
            ]
            host = sources.limited(memory, "r", stopped)._host
            wait_until(lambda: (memory.open_now, len(host._waiting)) == (2, 2))
            stopped.stop.set(error)
            ended = [one.exception(60) for one in waiting]
            refused = [type(one) for one in ended if one is not None]
            assert refused == 2 * [Cancelled if error else Unavailable]
            assert [one.result() for one in waiting if not one.exception()] == [len(DATA)]
        assert memory.open_now == 1
    assert memory.open_now == 0


def test_prefetches_give_way_to_pods():
    """While a pod reads, they get their share of the bytes; afterwards, all."""
    counts = {"pod": 0, "prefetch": 0}
    beside = []

    def prefetched(size):
        counts["prefetch"] += size
        if counts["pod"] < len(DATA):
            beside.append(counts["prefetch"] / max(1, counts["pod"]))

    sources = Sources(limits())
    prefetch = sources.limited(Memory(prefetched), "r", reader())
    pod = sources.limited(Memory(lambda size: None), "r", reader(urgent=True))
    with ThreadPoolExecutor(1) as pool, pod.open(BLOB, 0, len(DATA)) as stream:
        rest = pool.submit(read_all, prefetch, 64 << 10)
        while counts["pod"] < len(DATA):
            counts["pod"] += min(
                256 << 10, len(DATA) - counts["pod"]
            )  # the share counts what is asked
            stream.read(256 << 10)
        assert counts["prefetch"] <= len(DATA) / 3
    assert rest.result(60) == len(DATA)
    assert max(beside, default=0) <= 1 / 3 + 1e-9


def test_prefetches_do_not_starve():
    """Beside a pod's stream that does not move they go on, a slice at a time."""
    sources = Sources(limits(patience=0.0))
    pod = sources.limited(Memory(), "r", reader(urgent=True))
    with pod.open(BLOB, 0, len(DATA)):
        assert read_all(sources.limited(Memory(), "r", reader())) == len(DATA)


def test_urgency_may_change():
    """A prefetch that a pod begins to wait for is one no more."""
    sources = Sources(limits())
    job = Job(None, Priority.PREFETCH, 1)
    with sources.limited(Memory(), "r", reader(urgent=True)).open(BLOB, 0, 1):
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(
                read_all,
                sources.limited(
                    Memory(), "r", Reader(job.stop, lambda: job.priority is Priority.POD)
                ),
            )
            job.join(Priority.POD)
            assert done.result(30) == len(DATA)  # less than a slice's patience


def test_two_fetches_keep_one_rate(registry, proxy, name, session, tmp_path, store):
    """From a real registry, together: the bytes fit the time that passed, and the burst."""
    rate, clock = 4_000_000, Clock()
    within = SourceLimits(bytes_per_second=rate, connections=4)
    fetcher = Fetcher(store, jobs=3, sources=Sources(within, clock))
    access = Access(Policy((proxy.host,)), fast())
    models = []
    for number in (1, 2):
        directory = make_model(tmp_path / f"m{number}", seed=number, megabytes=4)
        at = f"{name}-{number}:v1"
        push(str(directory), Reference.parse(f"{registry.host}/{at}"), session(), PushOptions())
        reference = Reference.parse(f"{proxy.host}/{at}")
        wanted = resolve(reference, lambda ref: access.repository(ref, None), (), ())
        models.append((wanted, directory))
    proxy.seen.clear()

    def fetch(wanted):
        job = Job(wanted, Priority.POD, 1)
        return fetcher.fetch(wanted, job, clock.stop())

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(fetch, [wanted for wanted, _ in models]))
    for snapshot, (_, directory) in zip(found, models, strict=True):
        assert tree(store.tree(snapshot.key)) == tree(directory)
    burst = Bucket(rate, clock).burst
    assert proxy.bytes_sent() > 7_000_000
    assert proxy.bytes_sent() <= burst + rate * clock.now + 1  # a rounding


def test_hosts_are_forgotten():
    """Nothing is kept for a registry that nobody fetches from."""
    sources = Sources()
    source = sources.limited(Memory(), "r", reader())
    assert list(sources._hosts) == ["r"]
    del source
    assert list(sources._hosts) == []
