"""Where a configuration file lies: on disk, or in the installed package."""

from pathlib import Path

_PACKAGE = Path(__file__).parent


def locate(name: str) -> str:
    """The path to read for a name such as `configs/screen.py`; a file on disk goes first.

    A name that neither a file nor the package has is given back as it is.
    """
    packaged = _PACKAGE / Path(name).name
    if not Path(name).exists() and Path(name).parent == Path("configs") and packaged.is_file():
        return str(packaged)
    return name
