"""Which addresses and gRPC names stay on this machine."""

from __future__ import annotations

from ipaddress import ip_address

_UNIX = ("unix:", "unix-abstract:")


def is_local(target: str) -> bool:
    """Whether what is sent to a gRPC name or address never leaves this machine: loopback, or a unix socket.

    >>> from lookalike.addresses import is_local
    >>> is_local("dns:///localhost:50052"), is_local("ipv4:127.0.0.1:1,10.0.0.1:1")
    (True, False)
    """
    if target.startswith(_UNIX):
        return True
    scheme, _, rest = target.partition(":")
    # A name with an authority, dns://SERVER/NAME, is looked up elsewhere, and so is no loopback.
    names = rest.removeprefix("///") if scheme in ("dns", "ipv4", "ipv6") else target
    return all(_is_loopback(name) for name in names.split(","))


def _is_loopback(name: str) -> bool:
    host = name.rpartition(":")[0] if not name.endswith("]") and ":" in name else name
    if host == "localhost":
        return True
    try:
        return ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
