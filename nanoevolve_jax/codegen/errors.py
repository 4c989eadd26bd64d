"""Error class of code mutation."""

from nanoevolve_jax.errors import UserError


class CodegenError(UserError):
    """Error raised if a profile, folder or setting of code mutation cannot be used."""
