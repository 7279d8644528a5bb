"""IP addresses of clients, and what of them one client controls."""

from ipaddress import IPv6Address, ip_address, ip_network


def plain(address: str) -> str | None:
    """The address without the name of an interface; None if it is not one, as with a Unix socket.

    A dual-stack socket writes addresses of version 4 as version 6.
    """
    try:
        one = ip_address(address)
    except ValueError:
        return None
    if isinstance(one, IPv6Address):
        return str(one.ipv4_mapped or IPv6Address(int(one)))
    return str(one)


def place_of(address: str) -> str:
    """What one client controls: an IPv4 address, or the first 64 bits of an IPv6 address. `address` is plain."""
    one = ip_address(address)
    return str(one) if one.version == 4 else str(ip_network((int(one), 64), strict=False).network_address)
