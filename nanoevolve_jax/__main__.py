"""Runs `nanoevolve`, as `python -m nanoevolve_jax`."""

import sys

from nanoevolve_jax.cli import main

sys.exit(main(sys.argv[1:]))
