"""Walls built by hand where bubblewrap is missing: namespaces, and a root of read-only views.

It is started as `python -I -S -B namespaces.py SETTINGS COMMAND ...` and imports nothing but
Python's own library. SETTINGS is JSON: `visible` paths, names of `devices`, `links` as [path,
target], `tmp_bytes` of the one writable folder /tmp, and `info`, the number of a pipe that is told
the command's process.
"""

import ctypes
import json
import os
import signal
import sys

_NEW = {"user": 0x10000000, "mount": 0x20000, "pid": 0x20000000, "net": 0x40000000}
_NEW |= {"ipc": 0x8000000, "uts": 0x4000000}
_NOSUID, _NODEV, _BIND, _RECURSIVE, _PRIVATE = 0x2, 0x4, 0x1000, 0x4000, 0x40000
_DETACH = 2
_PARENT_DEATH_SIGNAL = 1
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000
_READ_ONLY, _NO_SETUID, _NO_DEVICES = 0x1, 0x2, 0x4  # of mount_setattr
_INSIDE = 1000  # user and group as the child sees them: nobody's powers

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttributes(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "user"))


def main() -> int:
    """Builds the walls, runs the command as process 1 behind them, and gives its exit code."""
    settings, command = json.loads(sys.argv[1]), sys.argv[2:]
    user, group = os.getuid(), os.getgid()
    parent = os.getpid()
    _check(_libc.unshare(sum(_NEW.values())), "unshare")
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{_INSIDE} {user} 1"),
        ("gid_map", f"{_INSIDE} {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    _die_with_parent()
    ready, go = os.pipe()
    child = os.fork()
    if not child:
        os.close(go)
        _die_with_parent()
        if os.getppid() not in (0, parent):
            os._exit(1)
        _build(settings)
        os.close(settings["info"])
        os.read(ready, 1)  # its process is known outside
        os.execv(command[0], command)
    with os.fdopen(settings["info"], "w") as info:
        json.dump({"child-pid": child}, info)
    os.close(go)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if code >= 0 else 128 - code


def _die_with_parent() -> None:
    _libc.prctl(_PARENT_DEATH_SIGNAL, ctypes.c_ulong(signal.SIGKILL))


def _build(settings: dict) -> None:
    """Makes an empty root, shows in it what is to be seen, and forgets the old one."""
    _mount(None, "/", None, _RECURSIVE | _PRIVATE)
    # Over /tmp, which every system has; what lies below is found again under the old root.
    _mount("tmpfs", "/tmp", "tmpfs", _NOSUID | _NODEV, "mode=0755,size=1m")
    os.mkdir("/tmp/old")
    pivot_root = _PIVOT_ROOT[os.uname().machine]
    _check(_libc.syscall(pivot_root, b"/tmp", b"/tmp/old"), "pivot_root")
    os.chdir("/")
    os.mkdir("/tmp")  # first, for what is to be seen may lie below it
    _mount("tmpfs", "/tmp", "tmpfs", _NOSUID | _NODEV, f"mode=0700,size={settings['tmp_bytes']}")
    for path in settings["visible"]:
        _show(path)
    for path, target in settings["links"]:
        os.symlink(target, path)
    for name in settings["devices"]:
        _show(f"/dev/{name}", device=True)
    _check(_libc.umount2(b"/old", _DETACH), "umount")
    os.rmdir("/old")
    _restrict("/", _READ_ONLY, recursive=False)


def _show(path: str, device: bool = False) -> None:
    source = f"/old{path}"
    if not os.path.exists(source):
        return
    if os.path.isdir(source):
        os.makedirs(path, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w"):
            pass
    _mount(source, path, None, _BIND | _RECURSIVE)
    _restrict(path, _READ_ONLY | _NO_SETUID | (0 if device else _NO_DEVICES), recursive=True)


def _restrict(path: str, attributes: int, recursive: bool) -> None:
    wanted = _MountAttributes(attributes, 0, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    arguments = _AT_FDCWD, path.encode(), flags, ctypes.byref(wanted), ctypes.sizeof(wanted)
    _check(_libc.syscall(_MOUNT_SETATTR, *arguments), f"mount_setattr {path}")


def _mount(source, target: str, kind, flags: int, options: str = "") -> None:
    text = [None if x is None else x.encode() for x in (source, target, kind)]
    done = _libc.mount(*text, ctypes.c_ulong(flags), options.encode() or None)
    _check(done, f"mount {target}")


def _check(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


if __name__ == "__main__":
    sys.exit(main())
