"""Shared fixtures, and two virtual devices as in a default search on two cores."""

import functools
import gc
import os
from collections.abc import Iterator
from pathlib import Path

import jax
import psutil
import pytest
from forked import Shell
from hypothesis import settings

from nanoevolve_jax.codegen.sandbox import runner

REPOSITORY = Path(__file__).resolve().parent.parent

jax.config.update("jax_num_cpu_devices", 2)
# Test processes and the commands that they start share compiled programs, and so do later runs.
# Tests that count compilations use a separate folder.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(REPOSITORY / ".pytest_cache" / "xla")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
settings.register_profile("fast", deadline=None, derandomize=True)
settings.load_profile("fast")


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Drops compiled programs between test files if this process holds more than a gigabyte."""
    moves_on = nextitem is None or nextitem.path != item.path
    if moves_on and psutil.Process().memory_info().rss > 2**30:
        for found in gc.get_objects():
            if type(found) is functools._lru_cache_wrapper:  # isinstance fails on dead proxies
                found.cache_clear()
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def repository() -> Path:
    """Returns the root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def walls() -> runner.Isolation:
    """Returns full isolation, or skips the test if this machine lacks a part of it."""
    found = runner.isolation(runner.AVAILABLE)
    if found.missing:
        pytest.skip(f"this machine has no isolation but {found.in_words()}")
    return found


@pytest.fixture(scope="session")
def shell() -> Iterator[Shell]:
    """Yields a runner of `nanoevolve` command lines."""
    with Shell(REPOSITORY) as started:
        yield started
