"""Which addresses and gRPC names stay on this machine."""

from __future__ import annotations

from ipaddress import ip_address

_UNIX = ("unix:", "unix-abstract:")


def is_local(target: str) -> bool:
    """Whether what is sent to a gRPC name or address never leaves this machine: loopback, or a unix socket.

    >>> [is_local(name) for name in ("127.0.0.1:50052", "dns:///localhost:50052", "unix:/run/search.sock")]
    [True, True, True]
    >>> [is_local(name) for name in ("0.0.0.0:50052", "ipv4:127.0.0.1:1,10.0.0.1:1", "search:50052")]
    [False, False, False]
    """
    if target.startswith(_UNIX):
        return True
    names = target
    for scheme in ("dns:", "ipv4:", "ipv6:"):
        # A name with an authority, dns://SERVER/NAME, is looked up elsewhere.
        names = names.removeprefix(scheme).removeprefix("///") if names.startswith(scheme) else names
    return all(_is_loopback(name) for name in names.split(","))


def _is_loopback(name: str) -> bool:
    host = name.rpartition(":")[0] if not name.endswith("]") and ":" in name else name
    if host == "localhost":
        return True
    try:
        return ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
