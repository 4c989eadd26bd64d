"""The loop of a code campaign, on simulated runs and scripted answers."""

import asyncio
import inspect
import json
import random
import re
import shutil
from types import SimpleNamespace

import pytest
import training
from benches import FormulaRuns

from nanoevolve_jax.codegen.campaign import proposal, questions
from nanoevolve_jax.codegen.campaign.controller import OUTAGE, Controller, Plan
from nanoevolve_jax.codegen.campaign.proposal import Question, Steps
from nanoevolve_jax.codegen.campaign.screening import Screening, inherited_code
from nanoevolve_jax.codegen.campaign.setup import in_threads
from nanoevolve_jax.codegen.campaign.state import State, resumed
from nanoevolve_jax.codegen.errors import CodegenError
from nanoevolve_jax.codegen.mutators.budget import Limits, Spent
from nanoevolve_jax.codegen.mutators.calls import Answer
from nanoevolve_jax.codegen.sandbox.certify import Verdict
from nanoevolve_jax.codegen.validation import language
from nanoevolve_jax.codegen.validation.refusals import Refused
from nanoevolve_jax.configs import codegen as codegen_config
from nanoevolve_jax.evidence.score import Scale
from nanoevolve_jax.evolution import archive, proposals
from nanoevolve_jax.evolution.archive import ArchiveError
from nanoevolve_jax.evolution.campaign import ARCHIVE, SCREENING, Campaign, identity
from nanoevolve_jax.evolution.library import Library
from nanoevolve_jax.evolution.tournament import Proposal
from nanoevolve_jax.execution.checkpoint import Interrupted
from nanoevolve_jax.execution.json_files import write_json
from nanoevolve_jax.policy.certified import FORMAT, Certified, digest

PROPOSALS = 9
FIRST_LINE = re.compile(r"Proposal (\d+), try (\d): (\w+)")
PRICE = 0.25  # dollars per call
FUNCTIONS = {
    "gate": "def gate(sensors, features, control):\n    return jax.nn.sigmoid({x} * control.bias)",
    "actuate": "def actuate(gate, poles):\n    return (1.0, gate, 1.0, 0.9, {x})",
    "features": "def features(sensors):\n    return ({x} * sensors.loss_ema, 0.0, 0.0, 0.0)",
}


def text_of(number, slot, try_):
    """Returns an answer; some are prose, some import a module, and number 7 repeats number 1."""
    if number % 4 == 3 and try_ == 1:
        return "no code at all"
    x = 0.5 + 0.05 * (1 if number == 7 else number)
    body = FUNCTIONS[slot].format(x=round(x, 3))
    return f"```python\n{'import os' if number % 5 == 4 else body}\n```"


class World:
    """Simulated providers and runs of one campaign, which count their calls and trainings."""

    def __init__(self, folder, delay=lambda number: 0.0, width=1, **changes):
        self.folder, self.delay, self.width = folder, delay, width
        self.asked = []
        self.config = codegen_config.get_config()
        self.config.update_from_flattened_dict(
            {
                "workdir": str(folder),
                "codegen.scope": "gating",
                "codegen.proposals": PROPOSALS,
                "codegen.window": 3,
                "codegen.islands": 2,
                "codegen.fill": 0,
                "codegen.ensemble": "one",
            }
            | {name.replace("__", "."): value for name, value in changes.items()}
        )
        self.runs = FormulaRuns(bpb_of)
        (folder / "telemetry").mkdir(parents=True, exist_ok=True)

    async def ask(self, provider, prompt, place):
        """Returns an answer and records the call; a repeated call returns it without payment."""
        number, try_, slot = FIRST_LINE.match(prompt).groups()
        marker = place / "answered"
        if not marker.exists():
            delay = self.delay(int(number))
            await (delay if inspect.isawaitable(delay) else asyncio.sleep(delay))
            place.mkdir(parents=True, exist_ok=True)
            marker.touch()
            self.asked.append((int(number), int(try_)))
        text = text_of(int(number), slot, int(try_))
        return Answer(text, 100, 10, PRICE, 0.0, 1, 0, None, provider, "model")

    def question(self, target, known):
        """Returns a question whose prompt contains everything that `ask` needs."""
        source = questions.source_of(self.folder, known.record(target.parent), target.slot)
        prompt = f"Proposal {target.number}, try 1: {target.slot}"
        return Question(target.slot, source, "one", prompt)

    def run(self, on_event=lambda *args: None, stopping=lambda: False, limits=None):
        """Runs the campaign from the state on disk and returns (state, reason for its end)."""
        engine = SimpleNamespace(task=training.TASK, width=self.width)
        campaign = Campaign(engine, self.config, self.folder, Scale(0.01, 0.0, 0.0))
        plan = Plan(
            question=self.question,
            worst=lambda question: Spent(2, 300, 2 * PRICE, 1.0),
            steps=Steps(
                self.ask,
                in_threads(validate, 2),
                Library(self.folder / "code"),
            ),
            limits=limits or Limits(),
        )
        entries = proposals.read(self.folder / proposals.FILE)
        records = archive.load(self.folder / ARCHIVE, [3, 1])
        state = State(tuple(entries), tuple(resumed(records, entries, self.folder / ARCHIVE)))
        controller = Controller(
            Screening(campaign, self.runs), plan, stopping=stopping, on_event=on_event
        )
        return controller.run(state)

    def lines(self):
        """Returns the entries and records without everything that depends on time."""
        records = archive.load_all(self.folder / ARCHIVE)
        entries = proposals.read(self.folder / proposals.FILE)
        return [entry._replace(seconds=0.0) for entry in entries], records


async def wait_until(condition):
    """Waits for a condition for up to half a minute."""
    for _ in range(600):
        if condition():
            break
        await asyncio.sleep(0.05)


def validate(slot, source):
    """Validates the text alone, because these programs are never run."""
    try:
        language.check(source, slot)
    except Refused as refused:
        return Verdict(None, refused.refusal, 0.0)
    kept = language.normalised(source)
    facts = {"sha256": digest(b"not run"), "flops": 2.0, "baseline_flops": 1.0}
    certificate = {"format": FORMAT, "slot": slot, "dtype": "float32"}
    certificate |= {"source_sha256": digest(kept.encode())}
    certificate |= {"computation": digest(kept.encode()), "seed_computation": "built in"}
    certificate |= {"programs": {"scalar": facts}}
    return Verdict(Certified(kept, certificate, {"scalar": b"not run"}), None, 0.0)


def bpb_of(job):
    """Returns a bpb that is lower for later answers."""
    code = job.candidate.code
    best = 0.0
    for function in code.functions if code else ():
        numbers = [float(x) for x in re.findall(r"0\.\d+|1\.\d+", function.source)]
        best += max(x for x in numbers if x != 0.9)
    return 3.0 - 0.1 * best + 1e-3 * job.candidate.spec.update_multiplier


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns a campaign that nothing slows or interrupts."""
    world = World(tmp_path_factory.mktemp("whole"))
    world.state, world.ended = world.run()
    return world


def test_the_outcome_of_a_proposal_follows_from_its_answer(whole):
    entries, records = whole.lines()
    assert whole.ended == f"all {PROPOSALS} proposals are made"
    assert [entry.number for entry in entries] == list(range(PROPOSALS))
    known = {record.id: record for record in records}
    for entry in entries:
        if entry.number % 5 == 4:
            assert (entry.outcome, entry.reason, entry.calls) == (proposals.REFUSED, "no_edit", 2)
            continue
        assert entry.outcome in (proposals.CANDIDATE, proposals.SAME)
        assert entry.calls == (2 if entry.number % 4 == 3 else 1)
        assert entry.dollars == PRICE * entry.calls
        if entry.outcome == proposals.CANDIDATE:
            record, parent = known[f"p{entry.number:04d}"], known[entry.parent]
            assert record.parent_id == entry.parent and record.spec == parent.spec
            assert entry.gain == max(0.0, record.score - parent.score)
    assert sorted(whole.asked) == sorted(
        (entry.number, try_ + 1) for entry in entries for try_ in range(entry.calls)
    )


def test_no_computation_is_trained_twice(whole):
    _, records = whole.lines()
    trained = [job for job, stage in whole.runs.jobs if stage == SCREENING]
    assert len(trained) == len(records)
    forms = [identity(record.spec, record.recipe, record.code) for record in records]
    assert len(set(forms)) == len(forms)


def test_parents_are_at_least_a_window_old(whole):
    entries, _ = whole.lines()
    window = whole.config.codegen.window
    for entry in entries:
        born = re.fullmatch(r"p(\d{4})(m\d+)?", entry.parent)
        assert born is None or int(born[1]) <= entry.number - window


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_answers_changes_nothing(whole, tmp_path, seed):
    rng = random.Random(seed)
    delays = [rng.choice([0.0, 0.05, 0.3]) for _ in range(PROPOSALS)]
    world = World(tmp_path, delay=delays.__getitem__)
    world.run()
    assert world.lines() == whole.lines()


def test_a_campaign_in_two_parts_is_the_same(whole, tmp_path):
    for count in (PROPOSALS // 2, PROPOSALS):
        world = World(tmp_path, codegen__proposals=count)
        world.run()
    assert world.lines() == whole.lines()


def test_of_two_equal_proposals_the_first_is_trained_in_any_order_of_answers(tmp_path, monkeypatch):
    usual, lines = text_of, []
    monkeypatch.setitem(globals(), "text_of", lambda n, *more: usual(2 if n == 1 else n, *more))
    for late in (1, 2):
        changes = {"codegen__proposals": 3, "codegen__islands": 1}
        world = World(
            tmp_path / str(late), lambda n, late=late: 0.4 * (n == late), width=3, **changes
        )
        world.run()
        lines.append(world.lines())
    entries, records = lines[0]
    assert (entries[2].outcome, entries[2].candidate) == (proposals.SAME, "p0001")
    assert "p0001m1" in [record.id for record in records]
    assert lines[1] == lines[0]


def test_fillers_do_not_change_the_journal(whole, tmp_path, monkeypatch):
    """One filler even has the spec and code of a later proposal on the same parent."""
    entries, records = whole.lines()
    later = next(r for r in records if r.generation > 1 and r.code["source"])
    shutil.copytree(whole.folder / "code", tmp_path / "code")

    def fill(self, state, most):
        spec, code = later.spec, inherited_code(later.code)
        filler = Proposal("m0001", "annealing", 1, "adjust", "a field", spec, code=code)
        return self._entered(state, self._run([filler]))

    monkeypatch.setattr(Screening, "fill", fill)

    def slow(number):
        founders = 3
        return 0.0 if number else wait_until(lambda: len(world.runs.jobs) > founders)

    world = World(tmp_path, delay=slow, codegen__fill=1)
    state, _ = world.run()
    assert "m0001" in [record.id for record in state.records]
    assert world.lines()[0] == entries
    for count in range(PROPOSALS + 1):
        assert all(questions.tried_of(slot, state.before(count)) is not None for slot in FUNCTIONS)


class Killed(Exception):
    """A simulated kill of this process."""


@pytest.mark.parametrize("step", [1, 2, 4, 7])
def test_a_campaign_that_dies_again_and_again_has_the_same_journal(
    whole, tmp_path, monkeypatch, step
):
    world, calls = World(tmp_path), 0

    def dying(function):
        def wrapped(*args):
            nonlocal calls
            calls += 1
            if calls % 9 == step:
                raise Killed
            return function(*args)

        return wrapped

    for module, name in ((proposals, "append"), (archive, "append"), (proposal, "write_question")):
        monkeypatch.setattr(module, name, dying(getattr(module, name)))
    for _ in range(50):
        try:
            world.run()
        except Killed:
            continue
        break
    assert calls > 9, "nothing died"
    assert world.lines() == whole.lines()
    assert sorted(world.asked) == sorted(whole.asked), "a call was paid twice, or never"


def test_records_of_a_proposal_that_is_not_in_the_journal_are_made_again(whole, tmp_path):
    world = World(tmp_path, width=2)
    world.run()
    reference = world.lines()
    path = tmp_path / proposals.FILE
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    lines = (tmp_path / ARCHIVE).read_bytes().splitlines(keepends=True)
    (tmp_path / ARCHIVE).write_bytes(b"".join(lines[:-1]))  # cut between candidate and mutant
    world.run()
    assert world.lines() == reference


def damaged(whole, folder, harm):
    """Returns a campaign with one more proposal, whose folder was damaged."""
    shutil.copytree(whole.folder, folder)
    harm(folder)
    return World(folder, codegen__proposals=PROPOSALS + 1)


def cut_archive(folder):
    lines = (folder / ARCHIVE).read_bytes().splitlines(keepends=True)
    (folder / ARCHIVE).write_bytes(b"".join(lines[:-1]))


def lose_question(folder):
    shutil.rmtree(proposals.folder_of(folder, PROPOSALS - 1))


def ask_next(**changes):
    """Returns a function that replaces the next question with one from another campaign."""

    def harm(folder):
        last, following = (proposals.folder_of(folder, PROPOSALS - 1 + i) for i in (0, 1))
        shutil.copytree(last, following)
        document = json.loads((following / proposal.INPUTS).read_text())
        document["aim"] |= changes
        write_json(following / proposal.INPUTS, document)

    return harm


@pytest.mark.parametrize(
    ("harm", "error", "message"),
    [
        (cut_archive, ArchiveError, r"must hold every candidate of proposals.jsonl, got none of"),
        (lose_question, CodegenError, r"0008/inputs.json is missing"),
        (ask_next(), CodegenError, r"must be of proposal 9 .* got proposal 8"),
        (ask_next(number=9, parent="x"), CodegenError, r"got proposal 9 of 'x'"),
    ],
)
def test_a_campaign_whose_files_disagree_is_not_resumed(whole, tmp_path, harm, error, message):
    with pytest.raises(error, match=message):
        damaged(whole, tmp_path / "copy", harm).run()


def test_free_lanes_train_mutants_under_the_same_code(tmp_path):
    world = World(tmp_path, width=3)
    world.run()
    _, records = world.lines()
    known = {record.id: record for record in records}
    mutants = [record for record in records if re.fullmatch(r"p\d{4}m\d", record.id)]
    assert mutants
    for record in mutants:
        parent = known[record.parent_id]
        assert record.code["computation"] == parent.code["computation"]
        assert record.spec != parent.spec and record.code["source"] is None


def test_the_budget_is_never_exceeded_and_holds_over_restarts(tmp_path):
    world = World(tmp_path)
    state, ended = world.run(limits=Limits(dollars=5 * PRICE))
    assert ended.startswith("limit of dollars: 1.25")
    assert sum(entry.dollars for entry in state.entries) <= 5 * PRICE
    assert len(state.entries) >= 3
    asked = list(world.asked)
    again, ended = world.run(limits=Limits(dollars=5 * PRICE))
    assert again.entries == state.entries and world.asked == asked
    assert ended.startswith("limit of dollars")


def test_an_outage_of_all_providers_ends_a_campaign_that_can_be_resumed(tmp_path):
    world = World(tmp_path, codegen__proposals=20)
    usual, world.ask = world.ask, refusing
    state, ended = world.run()
    settled = len(state.entries)
    assert OUTAGE <= settled <= OUTAGE + world.config.codegen.window
    assert {entry.outcome for entry in state.entries} == {proposals.FAILED}
    assert "no provider has answered" in ended and "out of order" in ended
    world.ask = usual
    state, ended = world.run()
    assert ended == "all 20 proposals are made"
    assert [entry.outcome for entry in state.entries].count(proposals.FAILED) == settled


async def refusing(provider, prompt, place):
    """Answers every question with a failure."""
    return Answer("", 0, 0, 0.0, 0.0, 1, 0, "out of order", provider, "model")


def test_a_campaign_without_progress_ends(tmp_path, monkeypatch):
    world = World(tmp_path, codegen__plateau=2, codegen__proposals=50)
    world.runs = FormulaRuns(lambda job: 3.0 + (job.candidate.code is not None))
    state, ended = world.run()
    assert ended == "no better candidate in 2 proposals"
    assert 2 <= len(state.entries) < 8


def test_waiting_is_filled_with_as_many_mutants_as_allowed(tmp_path):
    def slow(number):
        return wait_until(lambda: len(world.runs.jobs) >= 3 + 3)  # founders and mutants

    world = World(tmp_path, delay=slow, codegen__proposals=1, codegen__fill=3)
    state, _ = world.run()
    mutants = [record for record in state.records if re.fullmatch(r"m\d{4}", record.id)]
    assert len(mutants) == 3
    assert len({identity(r.spec, None, r.code) for r in mutants}) == 3


def test_a_campaign_stops_when_asked_to(tmp_path):
    world = World(tmp_path, delay=lambda number: 0.2)
    settled = []
    with pytest.raises(Interrupted):
        world.run(
            on_event=lambda status, entry: settled.append(entry),
            stopping=lambda: any(settled),
        )
    assert len(proposals.read(tmp_path / proposals.FILE)) >= 1
