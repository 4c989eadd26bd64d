"""`python -m nanoevolve_jax search ...` is `nanoevolve search ...`."""

import sys

from nanoevolve_jax.cli import main

sys.exit(main(sys.argv[1:]))
