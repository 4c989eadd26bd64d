"""The sandbox contains hostile programs in plain Python, and nothing of them remains."""

import os
import socket
import time
from pathlib import Path

import pytest
from hostile import ENDLESS, ENVIRONMENT, PROLOGUE, QUIET, SIGHT

from nanoevolve_jax.codegen.sandbox import runner
from nanoevolve_jax.codegen.sandbox.runner import BUBBLEWRAP, LIMITS, IsolationError, Limits

TIGHT = Limits(seconds=20.0, cpu_seconds=10, memory=512 << 20, scratch=8 << 20, output=4 << 20)
QUICK = TIGHT._replace(seconds=1.5)


def isolation_by(means):
    if not runner.works(means):
        pytest.skip(f"this machine allows no {means}")
    return runner.isolation(runner.AVAILABLE, means)


@pytest.fixture
def full():
    return isolation_by(BUBBLEWRAP)


@pytest.fixture(params=[BUBBLEWRAP, LIMITS])
def either(request):
    return isolation_by(request.param)


@pytest.fixture
def server():
    """Yields the port of a TCP server on this machine, which nothing may reach."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.01)
        yield listening.getsockname()[1]
        with pytest.raises(TimeoutError):
            listening.accept()


def processes_with(text):
    """Returns the ids of processes whose command line contains a text."""
    pids = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and text.encode() in (folder / "cmdline").read_bytes():
                pids.append(int(folder.name))
        except OSError:
            continue
    return pids


def require_gone(text):
    deadline = time.monotonic() + 5.0
    while processes_with(text):
        assert time.monotonic() < deadline, "a process is left"
        time.sleep(0.01)


@pytest.fixture
def attack(tmp_path, repository, server):
    """Returns a function that runs a hostile program and requires that nothing of it remains."""

    def run(program, isolation, limits=TIGHT):
        constants = {
            "PORT": server,
            "SOCKET": str(tmp_path / "socket"),
            "PID": os.getpid(),
            "SECRET": str(tmp_path / "secret"),
            "REPOSITORY": str(repository),
            "PACKAGE": str(repository / "nanoevolve_jax"),
            "HOME": os.path.expanduser("~"),
            "SCRATCH": limits.scratch,
        }
        names = "".join(f"{name} = {value!r}\n" for name, value in constants.items())
        (tmp_path / "secret").write_text("key")
        script = tmp_path / "hostile.py"
        script.write_text(names + PROLOGUE + program)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(tmp_path / "socket"))
            listening.listen()
            before = sorted(tmp_path.rglob("*"))
            outcome = runner.run(script, bytes(1 << 20), limits, isolation)
            assert sorted(tmp_path.rglob("*")) == before
        (tmp_path / "socket").unlink()
        require_gone(str(script))
        return outcome

    return run


@pytest.mark.parametrize("name", QUIET)
def test_a_hostile_program_achieves_nothing(attack, either, name):
    limits = TIGHT._replace(memory=128 << 20, seconds=3.0) if "threads" in name else TIGHT
    outcome = attack(QUIET[name], either, limits)
    assert outcome.result == b"", outcome
    # If the kernel does not count threads, the time limit ends them.
    assert outcome.stopped in (("", "time") if "threads" in name else ("",))
    assert "SyntaxError" not in outcome.errors and "NameError" not in outcome.errors


@pytest.mark.parametrize("name", SIGHT)
def test_a_hostile_program_sees_and_writes_no_file(attack, full, name):
    outcome = attack(SIGHT[name], full)
    assert (outcome.result, outcome.code) == (b"", 0), outcome


@pytest.mark.parametrize(
    "name", ["connects to a server of this machine", "talks to a local socket"]
)
def test_bubblewrap_hides_the_network_also_without_the_filter(attack, full, name, monkeypatch):
    monkeypatch.setattr(runner, "_filters", lambda: False)
    assert attack(QUIET[name], full).result == b""


@pytest.mark.parametrize("ending", ["", "time.sleep(1000)", "os.kill(os.getpid(), 9)"])
def test_a_daemon_ends_with_its_namespace_also_without_the_filter(
    attack, full, ending, monkeypatch
):
    monkeypatch.setattr(runner, "_filters", lambda: False)
    daemon = QUIET["starts a daemon in a session of its own"]
    outcome = attack(daemon + ending, full, QUICK)
    assert outcome.result or outcome.stopped  # it has forked


@pytest.mark.parametrize("name", ENDLESS)
def test_a_program_without_end_is_ended(attack, either, name):
    started = time.monotonic()
    outcome = attack(ENDLESS[name], either, QUICK)
    assert outcome.stopped == "time"
    assert time.monotonic() - started < QUICK.seconds + 5.0


def test_cpu_time_is_limited_apart_from_wall_clock(attack, either):
    outcome = attack("while True:\n    pass", either, TIGHT._replace(cpu_seconds=1))
    assert outcome.stopped == "time"


def test_the_environment_is_empty(attack, either, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "secret")
    names = eval(attack(ENVIRONMENT, either).result)
    assert set(names) <= {"JAX_PLATFORMS", "LC_ALL", "PWD"}


def test_a_result_over_the_limit_is_not_returned(attack, either):
    outcome = attack("os.write(RESULT, bytes(5 << 20))", either)
    assert (outcome.result, outcome.stopped) == (b"", "output")


def test_a_crash_has_the_signal_in_its_code(attack, either):
    assert attack("ctypes.string_at(0)", either).code == 128 + 11


def test_incomplete_walls_are_refused_unless_accepted():
    with pytest.raises(IsolationError, match=r"must be available .*lacks .*files out of sight"):
        runner.isolation("required", LIMITS)
    accepted = runner.isolation("available", LIMITS)
    assert accepted.refusal is None
    assert "files out of sight: NO" in accepted.in_words()
    with pytest.raises(IsolationError, match="must be required or available, got 'some'"):
        runner.isolation("some")


def test_a_killed_parent_takes_the_child_with_it(full, tmp_path):
    script = tmp_path / "sleeper.py"
    script.write_text("import time\ntime.sleep(1000)")
    child = os.fork()
    if not child:
        runner.run(script, b"", TIGHT, full)
        os._exit(0)
    deadline = time.monotonic() + 10
    while not any(pid != child for pid in processes_with(str(script))):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(child, 9)
    os.waitpid(child, 0)
    require_gone(str(script))
