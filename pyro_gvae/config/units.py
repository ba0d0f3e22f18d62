"""Units: settings are in gigabytes, the code counts in bytes, and messages use powers of ten."""

import math


def in_bytes(gigabytes: float) -> float:
    """Convert gigabytes (10^9 bytes) to bytes.

    Example:
        >>> in_bytes(1.5)
        1500000000.0
    """
    return gigabytes * 1e9


def codes_in_words(num_latents: int, num_categories: int) -> str:
    """Format S = K^N for a reader; numbers of more than 30 digits are not computed.

    Example:
        >>> codes_in_words(4, 8), codes_in_words(10**8, 10)
        ('4,096', 'about 10^100000000')
    """
    digits = num_latents * math.log10(num_categories)
    return f"{num_categories**num_latents:,}" if digits < 30 else f"about 10^{digits:.0f}"
