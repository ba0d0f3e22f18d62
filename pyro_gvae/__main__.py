"""`python -m pyro_gvae` is the console script `pyro-gvae`."""

import sys

from .cli.main import main

sys.exit(main())
