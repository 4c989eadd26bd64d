"""The program's own source files, wherever its packages are installed."""

from importlib import resources
from pathlib import Path

# In the repository these three lie beside `nanoevolve_jax/`; in an installation, inside it.
_PACKAGES = ("nanoevolve_jax", *(f"nanoevolve_jax.{name}" for name in ("configs", "data", "model")))


def source_files() -> dict[str, Path]:
    """Returns every Python file of the program.

    Returns:
      Paths of the files, keyed by their place in an installation, such as
      `nanoevolve_jax/model/gpt.py`.
    """
    files = {}
    for package in _PACKAGES:
        folder = Path(str(resources.files(package)))
        for path in sorted(folder.rglob("*.py")):
            files[f"{package.replace('.', '/')}/{path.relative_to(folder).as_posix()}"] = path
    return files
