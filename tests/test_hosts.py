"""Two processes that share a search on this machine give the results of one process."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from test_resume import LONGER, SCRIPT, contents, run
from test_search import SETTINGS, write_corpus

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Returns (folder, flags) of a tiny search with a checkpoint after every segment."""
    folder = tmp_path_factory.mktemp("hosts")
    corpus = write_corpus(folder / "corpus")
    fields = SETTINGS | LONGER
    fields |= {"data.corpus": f"parquet:{corpus}", "data.cache_dir": str(folder / "cache")}
    return folder, [f"--config.{name}={value}" for name, value in fields.items()]


@pytest.fixture(scope="module")
def alone(places):
    """Returns the run folder of one process with two devices."""
    status, _, err = run(places, places[0] / "alone")
    assert status == 0, err
    return places[0] / "alone"


def start_two(places, workdir, moment="never", count=0, flags=()):
    """Starts two processes with one device each, which die at occurrence `count` of a moment."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(SCRIPT), moment, str(count), "--config=configs/screen.py"]
    common = {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": "2",
        "JAX_NUM_CPU_DEVICES": "1",
        "TMPDIR": str(places[0]),
    }
    return [
        subprocess.Popen(
            [
                *command,
                *places[1],
                "--config.distributed=auto",
                f"--config.workdir={workdir}",
                *flags,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=SCRIPT.parent.parent,
            env=os.environ | common | {"JAX_PROCESS_ID": str(number)},
        )
        for number in range(2)
    ]


def end(processes):
    """Waits for all processes and returns (exit status, stdout, stderr) of each."""
    outputs = [process.communicate(timeout=300) for process in processes]
    return [(p.returncode, *output) for p, output in zip(processes, outputs, strict=True)]


def said(out):
    """Returns the lines of a process without those of CPU collectives."""
    return [line for line in out.splitlines() if not line.startswith("[Gloo]")]


def test_two_processes_give_the_bytes_of_one_and_only_the_first_speaks(places, alone, tmp_path):
    (status, out, err), (other_status, other_out, other_err) = end(
        start_two(places, tmp_path / "run")
    )
    assert (status, other_status) == (0, 0), err + other_err
    assert contents(tmp_path / "run") == contents(alone)
    assert any("generation 3: best" in line for line in said(out))
    assert not said(other_out)
    assert not list(places[0].glob("nanoevolve-*"))  # no copy of the run folder is left


def test_both_killed_and_started_again_they_end_the_same(places, alone, tmp_path):
    workdir = tmp_path / "run"
    for moment, count in (("segment", 6), ("append", 1)):
        for status, _, err in end(start_two(places, workdir, moment, count)):
            assert status in (-signal.SIGKILL, -signal.SIGABRT), err
    (status, out, err), _ = end(start_two(places, workdir))
    assert status == 0, err
    assert contents(workdir) == contents(alone)
    assert any("resuming" in line for line in said(out))


def test_asking_one_of_them_stops_both_and_both_go_on(places, alone, tmp_path):
    workdir = tmp_path / "run"
    processes = start_two(places, workdir)
    while not list(workdir.glob("checkpoints/[0-9]*")):  # training has started
        assert processes[0].poll() is None
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGTERM)
    for status, _, err in end(processes):
        assert status == 130, err
        assert "stopped and saved" in err
    (status, out, err), _ = end(start_two(places, workdir))
    assert status == 0, err
    assert any("resuming inside a batch" in line for line in said(out))
    assert contents(workdir) == contents(alone)


def test_a_candidate_that_two_processes_share_is_that_of_two_devices(places, tmp_path):
    flags = ["--config.data_parallel=2", "--config.search.generations=1"]
    shared = places[0], [*places[1], *flags]
    assert run(shared, tmp_path / "one")[0] == 0
    (status, _, err), _ = end(start_two(shared, tmp_path / "two"))
    assert status == 0, err
    # The sum of two summands does not depend on the order of collectives.
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
