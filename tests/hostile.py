"""Hostile programs in plain Python that test the sandbox without the language checks before it.

Each program attempts one escape and returns bytes if it succeeds. Constants in capitals are
prepended to its source: PORT, SOCKET, PID, SECRET, REPOSITORY, PACKAGE, HOME, SCRATCH.
"""

from pathlib import Path
from typing import NamedTuple

PROLOGUE = """
import ctypes, os, signal, socket, subprocess, sys, threading, time
from pathlib import Path
RESULT = int(sys.argv[1])
escaped = lambda what=1: os.write(RESULT, str(what).encode())
def attempt(function, *arguments):
    try:
        return function(*arguments)
    except (OSError, MemoryError, RuntimeError) as error:
        print(type(error).__name__, error, file=sys.stderr)
libc = ctypes.CDLL(None, use_errno=True)
"""

# Programs that end by themselves and return nothing.
QUIET = {
    "connects to a server of this machine": """
def go():
    with socket.create_connection(("127.0.0.1", PORT), timeout=2) as s:
        s.sendall(b"x")
        escaped()
attempt(go)
""",
    "sends a datagram": """
def go():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.sendto(b"x", ("127.0.0.1", PORT))
    escaped()
attempt(go)
""",
    "talks to a local socket": """
def go():
    socket.socket(socket.AF_UNIX).connect(SOCKET)
    escaped()
attempt(go)
""",
    "forks": """
def go():
    if os.fork() == 0:
        time.sleep(1000)
    escaped()
attempt(go)
""",
    "is a fork bomb": """
for _ in range(1000):
    if attempt(os.fork) is not None:
        escaped()
        attempt(os.fork)
""",
    "starts a program": """
if attempt(subprocess.run, [sys.executable, "-c", "pass"]) is not None:
    escaped()
""",
    "becomes a program": """
os.set_inheritable(RESULT, True)
attempt(os.execv, sys.executable, [sys.executable, "-c", f"import os; os.write({RESULT}, b'1')"])
""",
    "starts a daemon in a session of its own": """
def go():
    attempt(os.setsid)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(1000)
    escaped()
attempt(go)
""",
    "kills its parent": """
parent = os.getppid()
for target in (parent, -parent, -1, PID):
    if target not in (0, os.getpid()) and attempt(lambda: os.kill(target, 9) or 1):
        escaped()
attempt(lambda: signal.pidfd_send_signal(os.pidfd_open(PID), 9) or escaped())
""",
    "traces another process": """
for process in (1, PID):
    if libc.ptrace(16, process, None, None) == 0:
        escaped()
""",
    "reads another process's memory": """
if os.path.exists(f"/proc/{PID}/mem") or os.path.exists("/proc/self/mem"):
    attempt(lambda: open(f"/proc/{PID}/mem", "rb").read(1) or escaped())
buffer = ctypes.create_string_buffer(8)
vector = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)
if libc.process_vm_readv(PID, vector, 1, vector, 1, 0) > 0:
    escaped()
""",
    "mounts": """
if libc.mount(b"none", b"/tmp", b"tmpfs", 0, None) == 0 or libc.unshare(0x10000000) == 0:
    escaped()
""",
    "raises its own limits": """
import resource
for name in ("RLIMIT_DATA", "RLIMIT_AS", "RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_NOFILE"):
    number = getattr(resource, name)
    soft, hard = resource.getrlimit(number)
    if hard == resource.RLIM_INFINITY:
        escaped(name)
    try:
        resource.setrlimit(number, (hard * 2, hard * 2))
        escaped(name)
    except (ValueError, OSError):
        pass
""",
    "allocates 100 GB": """
attempt(bytearray, 100 << 30) and escaped()
""",
    "allocates 100 GB in pieces": """
def go():
    kept = []
    while True:
        kept.append(bytearray(64 << 20))
        if len(kept) > 1600:
            escaped()
            return
attempt(go)
""",
    "shares 100 GB with itself": """
import mmap
def go():
    kept = []
    for _ in range(1600):
        kept.append(mmap.mmap(-1, 64 << 20))
        kept[-1].write(b"x" * (64 << 20))
    escaped()
attempt(go)
""",
    "starts a million threads": """
threading.stack_size(32768)
def go():
    for _ in range(10 ** 6):
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
    escaped()
attempt(go)
""",
    "opens files without end": """
def go():
    kept = [os.open("/dev/null", os.O_RDONLY) for _ in range(10_000)]
    escaped(len(kept))
attempt(go)
""",
    "writes a file of 10 GB": """
def go():
    with open("/tmp/big", "wb", buffering=0) as file:
        for _ in range(160):
            if file.write(bytes(64 << 20)) == 0:
                return
            if file.tell() > SCRATCH:
                escaped()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
attempt(go)
attempt(os.remove, "/tmp/big")
""",
    "sets up io_uring": """
if libc.syscall(425, 8, ctypes.create_string_buffer(120)) >= 0:
    escaped()
""",
}

# Programs that only bubblewrap contains, because resource limits do not hide files.
SIGHT = {
    "looks around": """
seen = set()
for root, folders, files in os.walk("/"):
    if root.startswith(("/usr/lib", sys.prefix, sys.base_prefix, PACKAGE, "/dev")):
        folders[:] = []
        continue
    seen |= {f"{root}/{name}".replace("//", "/") for name in files}
for path in sorted(seen):
    allowed = ("/etc/ld.so.cache", "/proc/cpuinfo", sys.executable, __file__)
    if path not in allowed and not path.startswith("/lib"):
        escaped(path)
""",
    "reads a secret": """
for path in (SECRET, "/etc/passwd", "/etc/shadow", "/proc/self/environ", "/proc/1/environ",
             REPOSITORY + "/.git", REPOSITORY + "/README.md", HOME + "/.bashrc"):
    if os.path.lexists(path):
        escaped(path)
""",
    "writes everywhere": """
places = ["/", "/usr/lib", "/etc", "/dev", "/home", "/var", "/root", "/proc", sys.prefix,
    sys.base_prefix, PACKAGE, PACKAGE + "/codegen", os.path.dirname(os.__file__)]
for place in places:
    if place.startswith("/tmp/"):  # its own folder covers it
        continue
    if attempt(lambda: (Path(place) / "written").write_text("x")):
        escaped(place)
    if attempt(lambda: os.makedirs(Path(place) / "made") or 1):
        escaped(place)
if attempt(lambda: open(os.__file__, "a")) or attempt(lambda: os.remove(os.__file__) or 1):
    escaped("library")
if attempt(lambda: os.chmod(os.__file__, 0o777) or 1):
    escaped("mode")
""",
    "sees other processes": """
if any(name.isdigit() for name in os.listdir("/proc")):
    escaped(os.getpid())
""",
    "makes a device": """
if attempt(lambda: os.mknod("/tmp/disk", 0o60600, os.makedev(8, 0)) or 1):
    escaped()
""",
    "fills its folder with many files": """
def go():
    for number in range(10 ** 6):
        with open(f"/tmp/{number}", "wb") as file:
            file.write(bytes(1 << 20))
        if number << 20 > 2 * SCRATCH:
            return escaped()
try:
    attempt(go)
finally:
    for path in Path("/tmp").iterdir():
        if path.name.isdigit():
            path.unlink()
""",
}

ENVIRONMENT = """
os.write(RESULT, repr(sorted(os.environ)).encode())
"""

# Programs that never end by themselves.
ENDLESS = {
    "sleeps": "time.sleep(10 ** 6)",
    "ignores every signal and its parent's death": """
libc.prctl(1, ctypes.c_ulong(0))
for n in set(range(1, 65)) - {9, 19, 32, 33}:
    signal.signal(n, signal.SIG_IGN)
while True:
    time.sleep(1)
""",
    "closes every file": "os.closerange(0, 60)\nwhile True:\n    time.sleep(1)",
    "floods every stream": """
while True:
    for n in range(12):
        try:
            os.write(n, bytes(1 << 16))
        except OSError:
            pass
""",
}


class Attack(NamedTuple):
    """A hostile source from `attacks/`."""

    name: str
    slot: str
    reasons: list[str]  # expected reasons; 'none' if accepted but harmless
    purpose: str
    source: str


def attacks(kind):
    """Returns the attacks of a kind: 'text', 'computation' or 'clock'."""
    text = (Path(__file__).parent / "attacks" / f"{kind}.txt").read_bytes().decode()
    return [
        Attack(name, slot, reasons.split(), purpose, source)
        for header, source in (x.split("\n", 1) for x in text.removeprefix("### ").split("\n### "))
        for name, slot, reasons, purpose in [header.split(" | ")]
    ]
