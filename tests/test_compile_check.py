"""Code's training program is first compiled in a limited child process and never ends a run."""

import os
import time

import jax
import pytest
import training
from certified_code import BLEND, certify, code_of
from hostile import attacks
from jax.experimental.compilation_cache import compilation_cache

from nanoevolve_jax.evidence.runs import Runs
from nanoevolve_jax.evidence.work import MAIN
from nanoevolve_jax.execution import compile_check
from nanoevolve_jax.execution.checkpoint import Checkpoints, Interrupted
from nanoevolve_jax.execution.compile_check import CompileLimits, Stopped, TrainingProgram
from nanoevolve_jax.execution.cost import matrix_shapes
from nanoevolve_jax.execution.job import Job
from nanoevolve_jax.execution.measurements import compilations, start_counting
from nanoevolve_jax.execution.population import make_programs
from nanoevolve_jax.execution.settings import ConfigError
from nanoevolve_jax.policy.slots import SCALAR

BOMB = next(attack for attack in attacks("clock") if attack.name == "compile_bomb").source
HEAD = "import os, sys, time\nwrite = lambda line: os.write(1, line)\n"
LIMITS = CompileLimits(seconds=1.0, memory=1 << 30)
GATE = "def gate(sensors, features, control):\n    return 0.5 * control.bias\n"


@pytest.fixture(scope="module")
def program():
    """Returns a training program of which only the code matters here."""
    code = code_of(certify(GATE, "gate", (SCALAR,)))
    return TrainingProgram(training.TASK, code, 1, 1, 4)


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """Replaces the compiler by a script; returns a function that takes the script."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(compile_check, "MODULE", "stand_in")
    monkeypatch.setattr(compile_check, "_refusals", {})
    return lambda script: (tmp_path / "stand_in.py").write_text(HEAD + script)


BEGIN = f"write({compile_check.BEGUN!r})\n"
ENDS = {
    "time": (BEGIN + "time.sleep(60)", "within 1 s"),
    "memory": (BEGIN + "x = bytearray(1 << 60)", "within 1 GiB of memory"),
    "a crash": (BEGIN + "os.abort()", "signal 6"),
    "an error": (BEGIN + "raise ValueError('an operation')", "ValueError: an operation"),
    "a child that ends early": (BEGIN + "sys.exit(3)", "code 3"),
    "nothing": (BEGIN + f"write({compile_check.DONE!r})", None),
}


@pytest.mark.parametrize("end", ENDS)
def test_how_a_compilation_ends_decides_whether_the_program_may_be_used(end, compiler, program):
    script, words = ENDS[end]
    compiler(script)
    found = compile_check.refusal(program, LIMITS)
    assert (found is None) == (words is None)
    assert words is None or (words in found and len(found.splitlines()) == 1)
    compiler("raise SystemExit")  # the first result is kept
    assert compile_check.refusal(program, LIMITS) == found


def test_a_child_that_does_not_get_to_compile_says_nothing_about_the_program(compiler, program):
    compiler("raise OSError('no such device')")
    with pytest.raises(ConfigError, match="no such device"):
        compile_check.refusal(program, LIMITS)


def test_ctrl_c_ends_a_compilation_at_once(compiler, program, tmp_path):
    compiler(f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n{ENDS['time'][0]}")
    begun = time.monotonic()
    stopping = lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text()  # noqa: E731
    with pytest.raises(Stopped):
        compile_check.refusal(program, CompileLimits(), stopping)
    assert time.monotonic() - begun < 10.0
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.fixture(scope="module")
def shapes():
    """Returns the shapes of the task's matrices."""
    return matrix_shapes(training.TASK.model)


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """Yields an engine that checks compilations with a separate persistent cache."""
    monkeypatch.setattr(compile_check, "_refusals", {})
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: jax.config.values[name] for name in names}
    for name, value in zip(names, (str(tmp_path / "xla"), 0.0), strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # otherwise JAX would keep using its open folder
    yield training.make_engine(make_programs(training.TASK, devices=1, lanes=1))._replace(
        compile_limits=CompileLimits(seconds=300.0)
    )
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.mark.slow
def test_this_process_finds_in_the_cache_what_the_child_has_compiled(engine, shapes):
    start_counting()
    before = compilations()
    code = code_of(certify(BLEND, "direction", shapes))
    (result,) = engine.run([Job(training.candidate()._replace(code=code), 1, 8)])
    assert result.failure is None and result.steps == 8
    assert compilations()["train_segment"] == before["train_segment"]
    assert compilations()["cache_hits"] > before["cache_hits"]


@pytest.mark.slow
def test_a_program_that_does_not_compile_is_settled_as_dead_once(engine, shapes, tmp_path):
    code = code_of(certify(BOMB, "direction", shapes))
    job = Job(training.candidate()._replace(code=code), 1, 8)
    engine = engine._replace(compile_limits=CompileLimits(seconds=3.0))
    stopped = engine._replace(
        checkpoints=Checkpoints(tmp_path / "first", seconds=0, stopping=lambda: True)
    )
    with pytest.raises(Interrupted):
        list(stopped.run([job]))
    (tmp_path / "telemetry").mkdir()
    (run,) = Runs(tmp_path, {MAIN: lambda: engine}).run([job], "screening")
    assert "does not compile within 3 s" in run.failure
    assert (run.failed_step, run.steps) == (0, 0)
    again = Runs(tmp_path, {MAIN: lambda: pytest.fail("it was compiled again")})
    assert again.run([job], "screening")[0].failure == run.failure
