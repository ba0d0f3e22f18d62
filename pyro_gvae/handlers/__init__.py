"""Effect handlers for programs with discrete latents."""

from .handlers import discretize, enumerated, relax, straight_through, weigh_kl
from .mixing import unimix

__all__ = ["discretize", "enumerated", "relax", "straight_through", "unimix", "weigh_kl"]
