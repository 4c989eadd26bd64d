"""A search in which some Ray nodes report another version of JAX; `test_ray.py` runs it.

A node reports the version in the environment variable `CLAIMS_JAX`, if it is set. It starts after a
delay of `STARTS_AFTER` seconds.
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
    import ray_faults  # workers look functions up by the name of their module

    site.worker_site = ray_faults.worker_site
    command.run(search.search)


if __name__ == "__main__":
    main()
