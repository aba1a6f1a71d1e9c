"""Telling systemd how the daemon is: sd_notify(3) is one datagram."""

import os
import socket


def notify(state: str) -> bool:
    """Send a state, `READY=1` for one; returns whether anybody was there to hear it."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return False
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.sendto(state.encode(), address)
    except OSError:
        return False  # whoever listened is gone; the daemon goes on
    return True
