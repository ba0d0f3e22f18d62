"""`python -m pyro_gvae` is the console script `pyro-gvae`."""

import sys

from .cli import main

sys.exit(main())
