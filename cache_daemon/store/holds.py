"""Leases and pins: what must not be evicted, as small durable files."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from cache_daemon.api.values import Lease, Pin
from cache_daemon.store.records import read_record, remove_record, write_record

Held = TypeVar("Held", Lease, Pin)


@dataclass(slots=True)
class _Kind(Generic[Held]):
    directory: Path
    kind: type[Held]
    held: dict[str, Held]

    def load(self) -> None:
        """Read all records. A hold on a snapshot that is gone holds it when it comes back."""
        for path in self.directory.iterdir():
            record = read_record(path, self.kind)
            if record is None:
                remove_record(path)
            else:
                self.held[path.stem] = record

    def put(self, name: str, record: Held) -> None:
        write_record(self.directory / f"{name}.json", record)
        self.held[name] = record

    def drop(self, name: str) -> bool:
        self.held.pop(name, None)
        return remove_record(self.directory / f"{name}.json")


class Holds:
    """All leases and pins. A hold counts from the moment that its file is durable."""

    def __init__(self, leases: Path, pins: Path) -> None:
        self.leases: _Kind[Lease] = _Kind(leases, Lease, {})
        self.pins: _Kind[Pin] = _Kind(pins, Pin, {})
        self.leases.load()
        self.pins.load()

    def on(self, key: str) -> list[Lease | Pin]:
        """Return what holds a snapshot now."""
        now = time.time()
        pin = self.pins.held.get(key)
        pins = [pin] if pin and pin.holds(now) else []
        return [lease for lease in self.leases.held.values() if lease.key == key] + pins
