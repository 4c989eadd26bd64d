"""Configuration files on disk or in the installed package."""

from pathlib import Path

_PACKAGE = Path(__file__).parent


def locate(name: str) -> str:
    """Returns the path of a configuration file such as `configs/screen.py:d4`, with its variant.

    A file on disk takes precedence. Without one, `configs/` names the installed package.

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
