"""Warming that ends before anybody has waited for it."""

from concurrent.futures import Future

import pytest

from cache_daemon.store.warm import Warmer
from tests.cache_daemon.conftest import publish


class AtOnce:
    """Runs what it is given before it returns, as a fast disk may."""

    def submit(self, do, *arguments):
        future = Future()
        future.set_result(do(*arguments))
        return future

    def shutdown(self, **_):
        pass


@pytest.mark.timeout(30)
def test_what_is_warm_at_once_blocks_nobody(store):
    """The end is noticed although it came before the request looked, and the next one begins anew."""
    snapshot = publish(store, "a", {"x": b"1" * 5000})
    warmer = Warmer(store)
    warmer._one = AtOnce()
    for _ in range(2):
        assert warmer.warm(snapshot, 10).done
    assert warmer._running == {}
