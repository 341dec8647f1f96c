"""IP addresses as texts."""

from ipaddress import IPv6Address, ip_address


def canonical_address(text: str) -> str | None:
    """Return an address as ``ipaddress`` writes it, or None for a text that is no address.

    An IPv4 address that is mapped into IPv6 becomes the IPv4 address.
    """
    try:
        address = ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


def is_loopback(host: str) -> bool:
    """Return whether ``host`` is a loopback address; a name is none."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
