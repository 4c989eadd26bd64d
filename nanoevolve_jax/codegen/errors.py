"""What people did wrong, and commands say in one line."""


class CodegenError(ValueError):
    """A profile, a folder or a setting of code mutation that cannot be used."""
