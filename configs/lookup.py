"""Where a configuration file lies: on disk, or in the installed package."""

from pathlib import Path

_PACKAGE = Path(__file__).parent


def locate(name: str) -> str:
    """The path to read for a name such as `configs/screen.py:d4`, its variant kept.

    A file on disk goes first; `configs/` stands for the package where there is none.

    Raises:
      FileNotFoundError: if there is no such file in either place.
    """
    file, *variant = name.split(":", 1)
    path = Path(file)
    if not path.exists() and path.parent == Path("configs"):
        path = _PACKAGE / path.name
    if not path.is_file():
        raise FileNotFoundError(name)
    return ":".join([str(path), *variant])
