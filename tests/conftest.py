"""Two virtual devices for every test, as the default search has on two cores."""

from pathlib import Path

import jax
import pytest
from hypothesis import settings

jax.config.update("jax_num_cpu_devices", 2)
settings.register_profile("fast", deadline=None, derandomize=True)
settings.load_profile("fast")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY
