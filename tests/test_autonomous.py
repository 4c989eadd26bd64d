"""Code campaigns from end to end: thirty proposals, and a campaign that is killed ten times."""

import json
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from autonomous_run import KNOWN_GOOD, SECRET, SETTINGS, providers, run, script, start
from openai_server import Server
from scripted_answers import EXPECTED, PLAN, REASONS
from scripted_mutator import tokens

from nanoevolve_jax.evolution import archive, proposals
from nanoevolve_jax.evolution.library import Library

pytestmark = pytest.mark.slow
KILLED_AFTER = 12  # number of proposals in the campaign that is killed
KILLS = 10
WINDOW = SETTINGS["codegen.window"]


class Campaign:
    """A finished campaign and the server that answered half of its calls."""

    def __init__(self, folder, server, output):
        self.folder, self.server, self.output = folder, server, output
        self.entries = proposals.read(folder / proposals.FILE)
        self.records = {r.id: r for r in archive.load_all(folder / "archive.jsonl")}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("autonomous")


@pytest.fixture(scope="module")
def whole(place):
    """Yields an uninterrupted campaign of thirty proposals."""
    with Server(script) as server:
        profiles = providers(place, server.url)
        output = run(place, place / "whole", profiles)
        yield Campaign(place / "whole", server, output)


def test_every_proposal_is_accounted_for(whole):
    assert [entry.number for entry in whole.entries] == list(range(len(PLAN)))
    for entry in whole.entries:
        kind = PLAN[entry.number]
        wanted = EXPECTED[kind]
        outcome = (entry.outcome, entry.reason)
        record = whole.records.get(entry.candidate)
        if wanted == "refused":
            assert outcome == (proposals.REFUSED, REASONS[kind]), (kind, entry)
        elif wanted == "edit":
            assert outcome == (proposals.REFUSED, "no_edit"), (kind, entry)
        elif wanted == "failed":
            assert outcome == (proposals.FAILED, None)
        elif wanted == "inert":
            assert (entry.outcome, entry.candidate) == (proposals.SAME, entry.parent)
        elif wanted == "dead":
            assert entry.outcome == proposals.CANDIDATE
            assert record.status == "dead"
            assert record.failure["reason"].startswith("non-finite")
        elif entry.outcome == proposals.REFUSED:  # its quoted text was rewritten
            assert (kind, entry.reason) == ("searched", "no_edit")
        else:
            assert entry.outcome == proposals.CANDIDATE
            assert record.failure is None and np.isfinite(record.val_bpb[0])
        rounds = 2 if entry.outcome == proposals.REFUSED or wanted == "second" else 1
        assert entry.calls == rounds, entry
    trained = {e.candidate for e in whole.entries if e.outcome == proposals.CANDIDATE}
    assert trained <= set(whole.records)
    assert {e.provider for e in whole.entries} == {"scripted", "local"}


def test_costs_are_exact(whole):
    local = [entry for entry in whole.entries if entry.provider == "local"]
    assert sum(e.calls for e in local) == whole.server.paid.total() + _failed(local)
    assert sum(e.input_tokens for e in local) == whole.server.usage["prompt_tokens"]
    assert sum(e.output_tokens for e in local) == whole.server.usage["completion_tokens"]
    for entry in whole.entries:
        rounds = sorted(proposals.folder_of(whole.folder, entry.number).glob("try-*"))
        answers = [json.loads((place / "answer.json").read_text()) for place in rounds]
        requests = [json.loads((place / "request.json").read_text()) for place in rounds]
        if entry.outcome != proposals.FAILED:
            assert entry.input_tokens == sum(tokens(r["prompt"]) for r in requests)
            assert entry.output_tokens == sum(tokens(a["text"]) for a in answers)
        dollars = (entry.input_tokens + 4 * entry.output_tokens) / 1e6
        assert entry.dollars == pytest.approx(dollars, abs=1e-12)
        record = whole.records.get(entry.candidate)
        if entry.outcome == proposals.CANDIDATE:
            cost = record.code["cost"]
            assert (cost["calls"], cost["dollars"]) == (entry.calls, entry.dollars)
    summary = json.loads((whole.folder / "summary.json").read_text())
    assert summary["code"]["calls"] == sum(entry.calls for entry in whole.entries)
    assert summary["code"]["proposals"] == len(PLAN)


def _failed(entries):
    """Returns the number of calls that failed, which the server does not count as paid."""
    return sum(entry.calls for entry in entries if entry.outcome == proposals.FAILED)


def test_the_known_good_edit_is_adopted_by_evidence(whole):
    good = [entry for entry in whole.entries if entry.number in KNOWN_GOOD]
    assert all(entry.gain > 0 for entry in good)
    names = {entry.candidate for entry in good}

    def descends(record):
        while record.parent_id is not None:
            if record.id in names:
                return True
            record = whole.records[record.parent_id]
        return False

    best = max(whole.records.values(), key=lambda record: record.score)
    assert best.code is not None and descends(best)
    later = [entry for entry in whole.entries if entry.number > max(KNOWN_GOOD) + 3]
    parents = [whole.records[entry.parent] for entry in later]
    assert sum(map(descends, parents)) > len(parents) / 2
    dead = {r.id for r in whole.records.values() if r.failure is not None}
    assert dead and not dead & {entry.parent for entry in whole.entries}


def test_candidates_of_code_are_records_like_any_other(whole):
    library = Library(whole.folder / "code")
    for record in whole.records.values():
        assert (whole.folder / "telemetry" / f"{record.id}.npz").exists()
        if record.code is None:
            assert record.generation == 0
            continue
        code = library.code(record.code["certificates"])
        assert {f.slot: f.computation for f in code.functions} == record.code["computation"]
        if re.fullmatch(r"p\d{4}", record.id):
            assert record.operator == "code:direction"
            assert record.code["source"] == code.of("direction").source
            assert record.code["certificate"] == code.of("direction").certificate
            assert "+" in record.code["diff"]
        else:
            assert "m" in record.id and record.operator in _operators()


def _operators():
    from nanoevolve_jax.policy.mutations import OPERATORS

    return OPERATORS


def test_nothing_is_left_behind_or_given_away(whole):
    for path in whole.folder.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path
    assert SECRET not in whole.output
    assert not Path("/tmp/nanoevolve_was_here").exists()
    listed = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True).stdout
    assert str(whole.folder) not in listed


def test_a_finished_campaign_makes_no_further_call(whole, place):
    before = whole.server.requests.total()
    files = [whole.folder / proposals.FILE, whole.folder / "archive.jsonl"]
    lines = [path.read_bytes() for path in files]
    assert f"all {len(PLAN)} proposals" in run(place, whole.folder, place / "providers.toml")
    assert whole.server.requests.total() == before
    assert lines[0] == (whole.folder / proposals.FILE).read_bytes()
    assert lines[1] == (whole.folder / "archive.jsonl").read_bytes()


def test_a_campaign_killed_at_ten_random_moments_has_the_same_journal(whole, place):
    """Progress determines the moments of the kills, so the machine's speed does not matter."""
    rng = random.Random(0)
    folder = place / "killed"
    moments = sorted(rng.randrange(KILLED_AFTER // 2 + 1) for _ in range(KILLS))
    assert len(set(moments)) > 3
    with Server(script) as server:
        profiles = providers(place, server.url)
        for moment in moments:
            process = start(place, folder, profiles, codegen__proposals=KILLED_AFTER)
            while len(proposals.read(folder / proposals.FILE)) < moment:
                runs_for(process, 0.2)
            runs_for(process, rng.uniform(0.0, 8.0))
            process.kill()
            process.communicate()
        out = run(place, folder, profiles, codegen__proposals=KILLED_AFTER)
        paid = dict(server.paid)
    # A kill loses the calls in progress, which are then repeated.
    lost = sum(paid.values()) - len(paid)
    assert lost <= KILLS * WINDOW, "a call whose answer was stored was paid for again"
    killed = Campaign(folder, None, out)
    assert timeless(killed.entries) == timeless(whole.entries[:KILLED_AFTER])
    names = {entry.candidate for entry in killed.entries}
    kept = [r for r in whole.records.values() if r.generation == 0 or r.id.split("m")[0] in names]
    assert [known(r) for r in killed.records.values()] == [known(r) for r in kept]


def runs_for(process, seconds):
    """Waits for some seconds and fails if the process ends meanwhile."""
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=seconds)


def timeless(entries):
    """Returns the entries without the response times of the providers."""
    return [entry._replace(seconds=0.0) for entry in entries]


def known(record):
    """Returns a record without the fields that depend on time or on later candidates."""
    code = record.code and {name: x for name, x in record.code.items() if name != "cost"}
    return record._replace(code=code, status="", pareto=False)


def test_a_stopped_campaign_can_be_resumed(place):
    with Server(script) as server:
        profiles = providers(place, server.url)
        folder = place / "stopped"
        process = start(place, folder, profiles, codegen__proposals=3)
        deadline = time.monotonic() + 120
        while not proposals.folder_of(folder, 0).exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=300)
        assert process.returncode == 130
        assert "the same command resumes" in err
        run(place, folder, profiles, codegen__proposals=3)
        assert set(server.paid.values()) <= {1}
    assert len(proposals.read(folder / proposals.FILE)) == 3
