"""Units: people say gigabytes, and the code counts bytes."""


def in_bytes(gigabytes: float | None) -> float | None:
    """Convert a setting in gigabytes (10^9 bytes); None stays None, which is a share of the free memory.

    Example:
        >>> in_bytes(1.5), in_bytes(None)
        (1500000000.0, None)
    """
    return None if gigabytes is None else gigabytes * 1e9
