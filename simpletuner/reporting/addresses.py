"""Where a message may go: pure rules on addresses, and the one look-up whose answer is also the one connected to.

A name that is looked up twice can answer twice (DNS rebinding), so the address that was judged is the address used.
"""

from __future__ import annotations

import ipaddress
import socket

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Where clouds tell a machine's credentials to whoever asks from inside it.
METADATA = frozenset(
    map(ipaddress.ip_address, ("169.254.169.254", "fd00:ec2::254", "100.100.100.200", "168.63.129.16"))
)
_SHARED = ipaddress.ip_network("100.64.0.0/10")  # between a provider and its customers: RFC 6598
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # an IPv4 address in the last 32 bits: RFC 6052


def refusal(address: Address, allow_private: bool) -> str:
    """Why nothing is sent to an address, or nothing.

    Args:
        address: Of the receiver.
        allow_private: Whether this machine and its own network may receive.
    """
    inner = _inner(address)
    if inner in METADATA:
        return "it is the address where clouds keep credentials"
    if inner.is_link_local:
        return "it is a link-local address"
    if inner.is_multicast or inner.is_unspecified or (inner.is_reserved and not inner.is_loopback):
        return "it is not the address of a machine"
    own = inner.is_private or inner.is_loopback or inner in _SHARED
    if own and not allow_private:
        return "it is an address of this machine or its own network, and allow_private_addresses is false"
    return ""


def _inner(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for, if it does."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def literal(host: str) -> Address | None:
    """The address that is written out as a host, also in brackets; None for a name."""
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None


def permitted(host: str, port: int, allow_private: bool) -> str:
    """Look a host up, and choose an address that may receive.

    Raises:
        PermissionError: None of its addresses may.
        OSError: It has no address.
    """
    reason = ""
    for *_, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        text = str(place[0]).partition("%")[0]
        reason = refusal(ipaddress.ip_address(text), allow_private)
        if not reason:
            return text
    raise PermissionError(reason or "it has no address")
