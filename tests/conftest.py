"""Two virtual devices for every test, as the default search has on two cores."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from forked import Shell
from hypothesis import settings

from nanoevolve_jax.codegen.jail import sandbox

jax.config.update("jax_num_cpu_devices", 2)
# Commands that tests start share their compiled programs, apart from those of the user.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _PROGRAMS = tempfile.TemporaryDirectory(prefix="nanoevolve-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _PROGRAMS.name
settings.register_profile("fast", deadline=None, derandomize=True)
settings.load_profile("fast")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def walls() -> sandbox.Isolation:
    """All walls of the jail; tests that need them are skipped where there are none."""
    found = sandbox.isolation(sandbox.AVAILABLE)
    if found.missing:
        pytest.skip(f"this machine has no isolation but {found.in_words()}")
    return found


@pytest.fixture(scope="session")
def shell() -> Iterator[Shell]:
    """Runs `nanoevolve` command lines."""
    with Shell(REPOSITORY) as started:
        yield started
