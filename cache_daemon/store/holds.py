"""Leases and pins: what must not be evicted, as small durable files."""

import time
from pathlib import Path

from cache_daemon.api.values import Lease, Pin
from cache_daemon.store.records import Records


class Holds:
    """All leases and pins. A hold counts from the moment that its file is durable.

    A hold on a snapshot that is not here holds it when it comes.
    """

    def __init__(self, leases: Path, pins: Path) -> None:
        self.leases = Records.load(leases, Lease)
        self.pins = Records.load(pins, Pin)

    def on(self, key: str) -> list[Lease | Pin]:
        """Return what holds a snapshot now."""
        leases: list[Lease | Pin] = [one for one in self.leases.held.values() if one.key == key]
        pin = self.pins.held.get(key)
        return [*leases, pin] if pin and pin.holds(time.time()) else leases

    def drop_expired(self) -> None:
        """Remove the pins whose time is over."""
        now = time.time()
        for key in [key for key, pin in self.pins.held.items() if not pin.holds(now)]:
            self.pins.drop(key)
