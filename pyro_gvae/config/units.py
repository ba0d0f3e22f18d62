"""Units: people say gigabytes, and the code counts bytes."""


def in_bytes(gigabytes: float) -> float:
    """Convert a setting in gigabytes (10^9 bytes).

    Example:
        >>> in_bytes(1.5)
        1500000000.0
    """
    return gigabytes * 1e9
