"""A port that nobody may knock on: it knows of every connection, answered or not."""

import contextlib
import socket
from collections.abc import Iterator


class Witness:
    """Listens on all loopback addresses and never answers."""

    def __init__(self) -> None:
        both = socket.has_dualstack_ipv6()
        self.ipv6 = both
        family = socket.AF_INET6 if both else socket.AF_INET
        self.server = socket.create_server(("", 0), family=family, dualstack_ipv6=both)
        self.server.setblocking(False)
        self.port = self.server.getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        """How many came since the last time: the kernel completes them without us."""
        count = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                self.server.accept()[0].close()
                count += 1
        return count


@contextlib.contextmanager
def witness() -> Iterator[Witness]:
    """Listen until the block ends."""
    running = Witness()
    try:
        yield running
    finally:
        running.server.close()
