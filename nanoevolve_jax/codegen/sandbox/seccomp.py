"""A filter of system calls: no new process, program, socket, mount or look into other processes.

It is the wall behind the namespaces, and most of what is left where there are none. It imports
nothing but Python's own library, for it is installed by the first code inside (`confined.py`).
"""

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator

# Numbers by machine: (x86_64, aarch64); None: the machine has no such call.
_CALLS = {
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "connect": (42, 203),
    "bind": (49, 200),
    "kill": (62, 129),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "fanotify_init": (300, 262),
    "inotify_init1": (294, 26),
    "personality": (135, 92),
    "setpriority": (141, 140),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "syslog": (103, 116),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "ioperm": (173, None),
    "iopl": (172, None),
    "modify_ldt": (154, None),
    "vmsplice": (278, 75),
}
_CLONE, _CLONE3, _TGKILL, _MMAP = (56, 220), (435, 435), (234, 131), (9, 222)
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_CLONE_THREAD, _MAP_SHARED, _PROT_WRITE = 0x10000, 0x1, 0x2
_X32 = 0x40000000  # the other numbering of x86_64

_LOAD, _EQUAL, _AT_LEAST, _BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERROR, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in what the kernel shows of a call
_SET_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER = 38, 22, 2


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def supported() -> bool:
    """Whether the numbers of this machine's calls are known here."""
    return platform.machine() in _MACHINES and struct.calcsize("P") == 8


def install() -> None:
    """Filters the calls of this thread and of all that it starts; there is no way back.

    Raises:
      OSError: if the kernel does not filter.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    content = b"".join(_instructions(*_MACHINES[platform.machine()]))
    buffer = ctypes.create_string_buffer(content, len(content))
    program = _Program(len(content) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    arguments = [ctypes.c_ulong(x) for x in (1, 0, 0, 0)]
    if libc.prctl(_SET_NO_NEW_PRIVILEGES, *arguments) or libc.prctl(
        _SET_SECCOMP, ctypes.c_ulong(_FILTER), ctypes.byref(program)
    ):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "seccomp")


def _instructions(column: int, architecture: int) -> Iterator[bytes]:
    """The filter in the machine code of the kernel's filters."""

    def refuse(code: int = errno.EPERM) -> bytes:
        return _step(_RETURN, _ERROR | code)

    def load_argument(index: int) -> bytes:
        return _step(_LOAD, _ARGUMENTS + 8 * index)  # its lower half

    yield _step(_LOAD, _ARCH)
    yield _step(_EQUAL, architecture, 1, 0)
    yield _step(_RETURN, _KILL)
    yield _step(_LOAD, _NUMBER)
    yield _step(_AT_LEAST, _X32, 0, 1)
    yield refuse()
    for numbers in _CALLS.values():
        if numbers[column] is not None:
            yield _step(_EQUAL, numbers[column], 0, 1)
            yield refuse()
    # Its flags lie in memory, where a filter cannot look; the library then falls back to `clone`.
    yield _step(_EQUAL, _CLONE3[column], 0, 1)
    yield refuse(errno.ENOSYS)
    # A thread may be started, a process may not.
    yield _step(_EQUAL, _CLONE[column], 0, 4)
    yield load_argument(0)
    yield _step(_BITS, _CLONE_THREAD, 1, 0)
    yield refuse()
    yield _step(_RETURN, _ALLOW)
    # A signal to itself, as `abort` sends, and to nobody else.
    yield _step(_EQUAL, _TGKILL[column], 0, 4)
    yield load_argument(0)
    yield _step(_EQUAL, os.getpid(), 1, 0)
    yield refuse()
    yield _step(_RETURN, _ALLOW)
    # Shared memory to write to counts in no limit of data.
    yield _step(_EQUAL, _MMAP[column], 0, 5)
    yield load_argument(3)
    yield _step(_BITS, _MAP_SHARED, 0, 3)
    yield load_argument(2)
    yield _step(_BITS, _PROT_WRITE, 0, 1)
    yield refuse()
    yield _step(_RETURN, _ALLOW)


def _step(code: int, value: int, when_true: int = 0, when_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, when_true, when_false, value)
