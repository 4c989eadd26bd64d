"""Command lines that put walls around a program, and what may be seen from behind them."""

import json
import sys
import sysconfig
from pathlib import Path

BUBBLEWRAP, NAMESPACES, LIMITS = "bubblewrap", "namespaces", "limits only"
"""Means of isolation, the best first; limits alone are no walls."""

_HERE = Path(__file__).resolve().parent
_PACKAGE = _HERE.parents[1]
_DEVICES = ("null", "zero", "random", "urandom")


def launcher(means: str, script: Path, scratch: int) -> list[str]:
    """The beginning of a command line that runs the rest behind walls; `{info}` is left in it.

    Args:
      means: one of the three above.
      script: a file that the rest must see.
      scratch: bytes of /tmp, the one place to write to.
    """
    if means == LIMITS:
        return []
    paths, links = visible(script)
    if means == NAMESPACES:
        settings = {
            "visible": paths,
            "devices": _DEVICES,
            "links": links,
            "tmp_bytes": scratch,
        }
        text = json.dumps(settings)[:-1] + ', "info": {info}}'
        return [sys.executable, "-I", "-S", "-B", str(_HERE / "namespaces.py"), text]
    line = ["bwrap", "--unshare-user", "--unshare-all", "--uid", "1000", "--gid", "1000"]
    line += ["--die-with-parent", "--new-session", "--as-pid-1", "--info-fd", "{info}"]
    for name in _DEVICES:
        line += ["--dev-bind-try", f"/dev/{name}", f"/dev/{name}"]
    # Before the rest, for what is to be seen may lie below it.
    line += ["--size", str(scratch), "--tmpfs", "/tmp"]
    for path in paths:
        line += ["--ro-bind", path, path]
    for path, target in links:
        line += ["--symlink", target, path]
    return [*line, "--remount-ro", "/", "--chdir", "/tmp", "--"]


def visible(script: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """What a child may see, read-only: paths, and links by their targets."""
    prefixes = {sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix}
    paths = [f"{root}/{name}" for root in sorted(prefixes) for name in ("bin", "lib", "lib64")]
    paths += [f"{root}/pyvenv.cfg" for root in sorted(prefixes)]
    paths += [*site_packages(), sysconfig.get_path("stdlib"), str(Path(sys.executable).resolve())]
    paths += [
        "/usr/lib",
        "/usr/lib64",
        "/etc/ld.so.cache",
        "/proc/cpuinfo",
        str(_PACKAGE),
        str(script),
    ]
    links = []
    for name in ("/lib", "/lib64"):
        if Path(name).is_symlink():
            links.append((name, str(Path(name).readlink())))
        else:
            paths.append(name)
    there = sorted({path for path in paths if Path(path).exists()})
    return [p for p in there if not any(p.startswith(f"{q}/") for q in there)], links


def site_packages() -> list[str]:
    """Folders of installed packages that this process imports from."""
    names = ("site-packages", "dist-packages")
    return [path for path in sys.path if Path(path).name in names]
