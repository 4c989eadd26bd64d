"""A search on nodes of which some claim another version of JAX; `test_ray.py` runs it.

A node claims it where the environment variable `CLAIMS_JAX` is set; it starts after `STARTS_AFTER`
seconds.
"""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nanoevolve_jax import command, search, site

own_site = site.worker_site


def worker_site(config, **arguments):
    time.sleep(float(os.environ.get("STARTS_AFTER", 0)))
    made = own_site(config, **arguments)
    claimed = os.environ.get("CLAIMS_JAX")
    versions = made.facts.versions | ({"jax": claimed} if claimed else {})
    return made._replace(facts=made.facts._replace(versions=versions))


def main():
    import ray_faults  # workers find functions by the name of their module

    site.worker_site = ray_faults.worker_site
    command.run(search.search)


if __name__ == "__main__":
    main()
