"""Units: settings are in gigabytes, the code counts in bytes."""


def in_bytes(gigabytes: float | None) -> float | None:
    """Convert gigabytes (10^9 bytes) to bytes; None stays None, which means a share of the free memory.

    Example:
        >>> in_bytes(1.5), in_bytes(None)
        (1500000000.0, None)
    """
    return None if gigabytes is None else gigabytes * 1e9
