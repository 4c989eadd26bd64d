"""The walls hold against hostile programs in plain Python, and nothing of those is left."""

import os
import socket
import time
from pathlib import Path

import pytest
from hostile import ENDLESS, ENVIRONMENT, PROLOGUE, QUIET, SIGHT

from nanoevolve_jax.codegen.sandbox import runner
from nanoevolve_jax.codegen.sandbox.runner import (
    AVAILABLE,
    BUBBLEWRAP,
    LIMITS,
    NAMESPACES,
    IsolationError,
    Limits,
    isolation,
)

TIGHT = Limits(seconds=20.0, cpu_seconds=10, memory=512 << 20, scratch=8 << 20, output=8 << 20)
QUICK = TIGHT._replace(seconds=2.0)
NAMESPACED = (BUBBLEWRAP, NAMESPACES)


def require(means):
    if not runner.works(means):
        pytest.skip(f"no walls to test: this machine allows no {means}")
    return isolation(AVAILABLE, means)


@pytest.fixture(params=NAMESPACED)
def walls(request):
    """Full isolation, by each of its means."""
    return require(request.param)


@pytest.fixture(params=[*NAMESPACED, LIMITS])
def any_walls(request):
    """Isolation by each of its means, limits alone included."""
    return require(request.param)


@pytest.fixture
def server():
    """A TCP server of this machine; fails the test that reached it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.01)
        yield listening.getsockname()[1]
        with pytest.raises(TimeoutError):
            listening.accept()


def processes_with(text):
    """Process ids whose command line holds a text."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and text.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.fixture
def attack(tmp_path, repository, server):
    """Runs a hostile program; whatever it does, no process of it is left."""

    def run(program, walls, limits=TIGHT, request=b""):
        given = {
            "PORT": server,
            "SOCKET": str(tmp_path / "socket"),
            "PID": os.getpid(),
            "SECRET": str(tmp_path / "secret"),
            "REPOSITORY": str(repository),
            "PACKAGE": str(repository / "nanoevolve_jax"),
            "HOME": os.path.expanduser("~"),
            "SCRATCH": limits.scratch,
        }
        names = "".join(f"{name} = {value!r}\n" for name, value in given.items())
        (tmp_path / "secret").write_text("key")
        script = tmp_path / "hostile.py"
        script.write_text(names + PROLOGUE + program)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(tmp_path / "socket"))
            listening.listen()
            before = sorted(tmp_path.rglob("*"))
            outcome = runner.run(script, request, limits, walls)
            assert sorted(tmp_path.rglob("*")) == before
        (tmp_path / "socket").unlink()
        assert processes_with(str(script)) == []
        return outcome

    return run


@pytest.mark.parametrize("what", QUIET)
def test_what_is_tried_fails(attack, any_walls, what):
    limits = TIGHT._replace(memory=128 << 20) if "threads" in what else TIGHT
    outcome = attack(QUIET[what], any_walls, limits)
    assert "escaped" not in outcome.files, (outcome.files["escaped"], outcome.errors)
    # Threads that are not counted are slow to end; they are ended.
    assert outcome.stopped in (("", "time") if "threads" in what else ("",))
    assert "SyntaxError" not in outcome.errors and "NameError" not in outcome.errors


@pytest.mark.parametrize("what", SIGHT)
def test_what_is_out_of_sight_stays_there(attack, walls, what):
    outcome = attack(SIGHT[what], walls)
    assert "escaped" not in outcome.files, (outcome.files["escaped"], outcome.errors)
    assert outcome.code == 0, outcome.errors


@pytest.mark.parametrize(
    "what",
    [
        *("connects to a server of this machine", "talks to a local socket"),
        *("kills its parent", "traces another process", "reads another process's memory"),
    ],
)
def test_namespaces_hold_without_the_filter(attack, walls, what, monkeypatch):
    monkeypatch.setattr(runner, "_filters", lambda: False)
    outcome = attack(QUIET[what], walls)
    assert "escaped" not in outcome.files, (outcome.files["escaped"], outcome.errors)


@pytest.mark.parametrize("ending", ["", "time.sleep(1000)", "os.kill(os.getpid(), 9)", "1 / 0"])
def test_a_daemon_ends_with_its_namespace_also_without_the_filter(
    attack, walls, ending, monkeypatch
):
    monkeypatch.setattr(runner, "_filters", lambda: False)
    daemon = QUIET["starts a daemon in a session of its own"]
    outcome = attack(daemon + ending, walls, QUICK)  # which looks for what is left of it
    assert "escaped" in outcome.files or outcome.stopped  # it has forked


@pytest.mark.parametrize("what", ENDLESS)
def test_what_does_not_end_is_ended(attack, any_walls, what):
    why, program = ENDLESS[what]
    started = time.monotonic()
    outcome = attack(program, any_walls, QUICK, request=bytes(1 << 20))
    assert outcome.stopped == why
    assert time.monotonic() - started < QUICK.seconds + 5.0


def test_cpu_time_is_limited_apart_from_wall_clock(attack, any_walls):
    started = time.monotonic()
    outcome = attack("while True:\n    pass", any_walls, TIGHT._replace(cpu_seconds=2))
    assert outcome.stopped == "time"
    assert time.monotonic() - started < 10.0


def test_the_environment_is_empty(attack, any_walls, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "secret")
    seen = attack(ENVIRONMENT, any_walls).files["environment"].decode()
    assert "SOME_API_KEY" not in seen
    assert set(eval(seen)) <= {"JAX_PLATFORMS", "LC_ALL", "PWD"}


def test_what_is_no_plain_file_is_named_and_not_read(attack, any_walls):
    program = """
os.symlink("/etc/passwd", OUT / "link")
os.mkdir(OUT / "folder")
(OUT / "plain").write_bytes(b"x")
"""
    files = attack(program, any_walls).files
    assert files == {"link": None, "folder": None, "plain": b"x"}


def test_a_result_over_the_limit_is_stopped(attack, any_walls):
    program = """
for name in "abcdef":
    with open(OUT / name, "wb") as file:
        file.truncate(4 << 20)
"""
    outcome = attack(program, any_walls)
    assert outcome.stopped == "output" or sum(map(len, outcome.files.values())) <= TIGHT.output + 1


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xff" * 8,
        b"\xff" * 64,
        (5).to_bytes(8, "little") + b"[1,2]",
        (9).to_bytes(8, "little") + b'[["a",9]]x',
        (10).to_bytes(8, "little") + b'[["a",-9]]x',
        (12).to_bytes(8, "little") + b'[["a",true]]x',
        (20000).to_bytes(8, "little") + b"[" * 20000,
        (3 << 20).to_bytes(8, "little") + b'[["a",0]' + b" " * ((3 << 20) - 9) + b"]",
    ],
)
def test_garbage_in_place_of_results_is_nothing(frame):
    assert runner._files(frame) == {}


def test_a_crash_has_the_signal_as_its_code(attack, any_walls):
    assert attack("ctypes.string_at(0)", any_walls).code == 128 + 11


def test_incomplete_walls_are_refused_unless_accepted():
    with pytest.raises(IsolationError, match=r"without: .*files out of sight.*isolation=available"):
        isolation("required", LIMITS)
    accepted = isolation("available", LIMITS)
    assert accepted.refusal is None
    assert "files out of sight: NO" in accepted.in_words()
    with pytest.raises(IsolationError, match="isolation is 'some'; allowed: required, available"):
        isolation("some")


def test_a_killed_parent_takes_the_child_with_it(walls, tmp_path, repository):
    script = tmp_path / "sleeper.py"
    script.write_text("import time\ntime.sleep(1000)")
    child = os.fork()
    if not child:
        runner.run(script, b"", TIGHT, walls)
        os._exit(0)
    deadline = time.monotonic() + 10
    while not any(pid != child for pid in processes_with(str(script))):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(child, 9)
    os.waitpid(child, 0)
    deadline = time.monotonic() + 5
    while processes_with(str(script)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
