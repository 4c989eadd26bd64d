"""Entry point of the sandbox: limits its own process, filters system calls and runs a script.

It is started as `python -I -B confined.py SETTINGS` and imports only Python's standard library.
SETTINGS is JSON from `runner.py`. The script receives a file descriptor for its result as its
argument. Its standard output is redirected to standard error.
"""

import contextlib
import ctypes
import errno
import json
import os
import resource
import runpy
import struct
import sys
import traceback
from collections.abc import Iterator

# System calls that are refused, with their numbers on x86_64 and aarch64. They start processes,
# open sockets, access other processes, change namespaces and mounts, allocate memory that is not
# subject to the limits, or belong to large kernel interfaces that mathematics does not need.
_CALLS = """
fork 57 -, vfork 58 -, execve 59 221, execveat 322 281,
socket 41 198, socketpair 53 199, connect 42 203, bind 49 200,
kill 62 129, tkill 200 130, rt_sigqueueinfo 129 138, rt_tgsigqueueinfo 297 240,
pidfd_send_signal 424 424, pidfd_open 434 434, pidfd_getfd 438 438, ptrace 101 117,
process_vm_readv 310 270, process_vm_writev 311 271, process_madvise 440 440, kcmp 312 272,
unshare 272 97, setns 308 268, mount 165 40, umount2 166 39, pivot_root 155 41, chroot 161 51,
open_tree 428 428, move_mount 429 429, fsopen 430 430, fsconfig 431 431, fsmount 432 432,
fspick 433 433, mount_setattr 442 442, mknod 133 -, mknodat 259 33,
name_to_handle_at 303 264, open_by_handle_at 304 265,
memfd_create 319 279, memfd_secret 447 447, shmget 29 194, semget 64 190, msgget 68 186,
mq_open 240 180, add_key 248 217, request_key 249 218, keyctl 250 219,
bpf 321 280, perf_event_open 298 241, userfaultfd 323 282, io_uring_setup 425 425,
io_uring_enter 426 426, io_uring_register 427 427, fanotify_init 300 262, inotify_init1 294 26,
personality 135 92, setpriority 141 140, init_module 175 105, finit_module 313 273,
delete_module 176 106, kexec_load 246 104, reboot 169 142, swapon 167 224, swapoff 168 225,
acct 163 89, quotactl 179 60, syslog 103 116, sethostname 170 161, setdomainname 171 162,
settimeofday 164 170, clock_settime 227 112, adjtimex 159 171, clock_adjtime 305 266,
ioperm 173 -, iopl 172 -, modify_ldt 154 -, vmsplice 278 75
"""
_CLONE, _CLONE3, _TGKILL, _MMAP = (56, 220), (435, 435), (234, 131), (9, 222)
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_CLONE_THREAD, _MAP_SHARED, _PROT_WRITE = 0x10000, 0x1, 0x2
_X32 = 0x40000000  # first system call number of the x32 ABI on x86_64

# Instructions, results and offsets of seccomp filters (linux/filter.h, linux/seccomp.h).
_LOAD, _EQUAL, _AT_LEAST, _BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERROR, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_SET_DEATH_SIGNAL, _SET_SECCOMP, _SET_NO_NEW_PRIVILEGES = 1, 22, 38


def main() -> int:
    """Confines this process, runs the script and returns its exit code."""
    settings = json.loads(sys.argv[1])
    result = os.dup(1)
    os.dup2(2, 1)
    _prctl(_SET_DEATH_SIGNAL, 9)
    sys.path[:] = [*settings["paths"], *sys.path]
    for name, value in settings["limits"].items():
        # The kernel sends SIGXCPU at the soft limit of CPU time and SIGKILL at the hard limit.
        hard = value + 5 if name == "RLIMIT_CPU" else value
        with contextlib.suppress(ValueError, OSError):  # a lower limit is already in force
            resource.setrlimit(getattr(resource, name), (value, hard))
    cpus = sorted(os.sched_getaffinity(0))
    first = os.getppid() % len(cpus)  # distributes children over the CPUs
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, (cpus[first:] + cpus[:first])[: settings["cpus"]])
    if settings["filter"]:
        _filter_calls()
    sys.argv = [settings["script"], str(result)]
    try:
        runpy.run_path(settings["script"], run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _prctl(option: int, *values: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, *map(ctypes.c_ulong, values), *[ctypes.c_ulong(0)] * (4 - len(values))):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"prctl {option}")


def _filter_calls() -> None:
    """Irrevocably filters the system calls of this thread and of all threads that it starts."""
    content = b"".join(_instructions(os.uname().machine))
    buffer = ctypes.create_string_buffer(content, len(content))
    program = struct.pack("HxxxxxxQ", len(content) // 8, ctypes.addressof(buffer))
    pointer = ctypes.create_string_buffer(program, len(program))
    _prctl(_SET_NO_NEW_PRIVILEGES, 1)
    _prctl(_SET_SECCOMP, 2, ctypes.addressof(pointer))


def _instructions(machine: str) -> Iterator[bytes]:
    """Yields the instructions of the seccomp filter for a machine architecture."""
    column = list(_ARCHITECTURES).index(machine)

    def step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("HBBI", code, if_true, if_false, value)

    refuse, allow = step(_RETURN, _ERROR | errno.EPERM), step(_RETURN, _ALLOW)

    def argument(index: int) -> bytes:
        return step(_LOAD, _ARGUMENTS + 8 * index)  # lower 32 bits of the argument

    yield step(_LOAD, _ARCHITECTURE) + step(_EQUAL, _ARCHITECTURES[machine], 1, 0)
    yield step(_RETURN, _KILL) + step(_LOAD, _NUMBER) + step(_AT_LEAST, _X32, 0, 1) + refuse
    for entry in _CALLS.split(","):
        number = entry.split()[1 + column]
        if number != "-":
            yield step(_EQUAL, int(number), 0, 1) + refuse
    # The flags of `clone3` are in memory, which a filter cannot read. With ENOSYS, the C library
    # falls back to `clone`.
    yield step(_EQUAL, _CLONE3[column], 0, 1) + step(_RETURN, _ERROR | errno.ENOSYS)
    # New threads are allowed, but new processes are not.
    yield step(_EQUAL, _CLONE[column], 0, 4) + argument(0)
    yield step(_BITS, _CLONE_THREAD, 1, 0) + refuse + allow
    # A process may send a signal to itself, as `abort` does.
    yield step(_EQUAL, _TGKILL[column], 0, 4) + argument(0)
    yield step(_EQUAL, os.getpid(), 1, 0) + refuse + allow
    # Writable shared memory is refused because it is not subject to any limit.
    yield step(_EQUAL, _MMAP[column], 0, 5) + argument(3) + step(_BITS, _MAP_SHARED, 0, 3)
    yield argument(2) + step(_BITS, _PROT_WRITE, 0, 1) + refuse + allow


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code & 0xFF)  # skips exit handlers that the script may have registered
