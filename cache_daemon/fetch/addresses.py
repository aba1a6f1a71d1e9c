"""Addresses that a daemon must not be talked into asking: this machine's own, and its cloud's."""

import ipaddress
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_IPV4_INSIDE: Final = [  # the last 32 bits are an IPv4 address
    ipaddress.IPv6Network(one)
    for one in ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48")
]
_THIS_NETWORK: Final = ipaddress.IPv4Network("0.0.0.0/8")  # Linux takes 0.0.0.0 for loopback
# Metadata services outside link-local: AWS, Google, Alibaba, Azure, Oracle.
_METADATA: Final = [
    ipaddress.ip_network(one)
    for one in (
        "fd00:ec2::/32", "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192",
    )
]  # fmt: skip


def forbidden(address: str) -> str:
    """Return what an address is that must not be asked ("loopback", say), else "".

    IPv6 addresses that stand for an IPv4 one (mapped, NAT64, 6to4, Teredo) are what that one is.
    Also the addresses of this machine's own interfaces: the kernel is asked; nothing is sent.
    """
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return "no address"
    return next((kind for one in _meanings(ip) if (kind := _kind(one))), _own(address, ip))


def _meanings(ip: _Address) -> Iterator[_Address]:
    yield ip
    if isinstance(ip, ipaddress.IPv6Address):
        if any(ip in network for network in _IPV4_INSIDE):
            yield ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        yield from (one for one in (ip.sixtofour, *(ip.teredo or ())) if one is not None)


def _kind(ip: _Address) -> str:
    if ip.is_loopback:
        return "loopback"
    if ip.is_link_local:
        return "link-local"
    if ip.is_multicast or ip == ipaddress.IPv4Address("255.255.255.255"):
        return "multicast"
    if ip.is_unspecified or ip in _THIS_NETWORK:
        return "unspecified"
    return "a metadata service" if any(ip in network for network in _METADATA) else ""


def _own(address: str, ip: _Address) -> str:
    family = socket.AF_INET6 if ip.version == 6 else socket.AF_INET
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))  # of a datagram socket: only the route is looked up
        if ipaddress.ip_address(probe.getsockname()[0].partition("%")[0]) == ip:
            return "this machine"
    return ""
