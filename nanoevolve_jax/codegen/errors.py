"""The error class of code mutation."""

from nanoevolve_jax.errors import UserError


class CodegenError(UserError):
    """A profile, a folder or a setting of code mutation that cannot be used."""
