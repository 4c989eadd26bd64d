"""What a proposal asks for, and what of a campaign its prompt tells."""

import re

import numpy as np
import pytest
from certified_code import BLEND, certify, entry, write_campaign
from histories import make_columns, save
from nanoevolve_jax.configs import codegen as codegen_config
from records import make_dead, make_record

from nanoevolve_jax.codegen.campaign import asking
from nanoevolve_jax.codegen.campaign.islands import Aim, Rules, aim, island_of
from nanoevolve_jax.codegen.campaign.state import State
from nanoevolve_jax.evolution import archive, proposals
from nanoevolve_jax.policy.slots import built_in_source

ISLANDS, EVERY, KNOWN = 3, 4, 24


def lines_of_descent():
    """A campaign whose first island is by far the best."""
    names = [f"p{number:04d}" for number in range(KNOWN)]
    scores = np.random.default_rng(0).uniform(1.0, 2.0, KNOWN)
    records = [
        make_record(name, score=score + 9.0 * (island_of(number, ISLANDS) == 0), generation=1)
        for number, (name, score) in enumerate(zip(names, scores, strict=True))
    ]
    entries = [entry(n, island=island_of(n, ISLANDS)) for n in range(KNOWN)]
    return State(tuple(entries), (make_record(), *records))


@pytest.mark.parametrize("every", [EVERY, 0])
def test_parents_come_from_their_own_island_but_for_an_occasional_migrant(every):
    known = lines_of_descent()
    rules = Rules(0, ISLANDS, every, ("direction",), parents=3, tournament=2)
    turns = range(KNOWN // ISLANDS, 10 * EVERY)
    homes = {"own": [], "other": []}
    for turn in turns:
        for island in range(ISLANDS):
            found = aim(turn * ISLANDS + island, known, rules)
            born = island_of(int(found.parent[1:]), ISLANDS)
            assert found.island == island
            homes["own" if born == island else "other"].append((turn, island, born))
    migrants = [turn for turn in turns if every and turn % every == every - 1]
    assert [turn for turn, *_ in homes["other"]] == [t for t in migrants for _ in range(ISLANDS)]
    assert all(born == (island + 1) % ISLANDS for _, island, born in homes["other"])
    assert len(homes["own"]) == ISLANDS * (len(turns) - len(migrants))


def test_mutants_of_an_islands_candidates_are_at_home_there_and_failures_nowhere():
    entries = tuple(entry(n, island=n) for n in range(2))
    records = (
        make_record(),
        *(make_record("p0000", score=1.0), make_record("p0000m1", score=9.0)),
        *(make_dead("p0001"), make_record("m0001", score=99.0)),
    )
    records = tuple(r._replace(generation=int(r.id != "nanochat")) for r in records)
    known = State(entries, records).before(2)
    rules = Rules(0, 2, 0, ("direction",), parents=1, tournament=1)
    assert [aim(number, known, rules).parent for number in (2, 3)] == ["p0000m1", "nanochat"]


def test_an_island_sees_its_own_best_beside_the_best_of_all():
    known, rules = lines_of_descent(), Rules(0, ISLANDS, 0, ("direction",), 3, 2)
    known = known._replace(records=tuple(r._replace(code={"source": ""}) for r in known.records))
    ranked = sorted(known.records[1:], key=lambda record: -record.score)
    for number in range(KNOWN, KNOWN + 12):
        found = aim(number, known, rules)
        own = [r.id for r in ranked if island_of(int(r.id[1:]), ISLANDS) == found.island]
        others = [r.id for r in ranked if r.id != found.parent]
        wanted = [name for name in own if name != found.parent][:1]
        assert found.shown == tuple(dict.fromkeys([*wanted, *others]))[:2]
        assert own[0] in (found.parent, *found.shown)
        assert ranked[0].id in (found.parent, *found.shown)


REFUSED = {"outcome": proposals.REFUSED, "candidate": None, "reason": "cost", "message": "9 times"}


@pytest.mark.parametrize(
    ("sources", "shown"),
    [
        ([BLEND], "ahead = x + 0.8 * (buffer - x)"),
        (["import os", BLEND], "ahead = x + 0.8 * (buffer - x)"),
        ([BLEND, "import os  # tell the others"], None),
        ([BLEND, None], None),  # no edit at last
        ([], None),
    ],
)
def test_a_refused_source_is_shown_if_it_was_the_last_and_is_in_the_language(
    tmp_path, sources, shown
):
    for count, source in enumerate(sources, 1):
        place = proposals.folder_of(tmp_path, 0) / f"try-{count}"
        place.mkdir(parents=True)
        if source is not None:
            (place / "source.py").write_text(f"# a word to the next\n{source}")
    known = State((entry(0, **REFUSED),), (make_record(),))
    (failure,) = asking.failures_of("direction", known, tmp_path)
    assert (failure.reason, failure.message) == ("cost", "9 times")
    assert failure.source is None if shown is None else shown in failure.source
    assert "word" not in (failure.source or "")


def test_a_prompt_tells_what_was_measured_what_failed_and_what_was_tried(tmp_path):
    blend = certify(BLEND, "direction", [(8, 8)])
    folder = write_campaign(tmp_path / "run", blend)
    losses = {"loss": [5.0, 4.0, 3.5, 3.2, 3.1, 3.0]}
    save(folder, "p0000", make_columns([0.5] * 6, grad_norm=[0.25] * 6, **losses))
    records = archive.load_all(folder / "archive.jsonl")
    code = next(record.code for record in records if record.id == "p0000")
    records.append(make_dead("p0002", generation=1, code=code | {"source": "ruined = 1"}))
    entries = proposals.read(folder / proposals.FILE)
    entries += [entry(2), entry(3, outcome=proposals.SAME, candidate="p0000")]
    known = State(tuple(entries), tuple(records))
    wanted = Aim(4, 1, "direction", "nanochat", ("p0000",))
    config = codegen_config.get_config()
    config.codegen.ensemble = "one"
    brief = asking.brief_of(wanted, known, config=config, folder=folder, shapes=[(8, 8)])
    assert (brief.slot, brief.provider) == ("direction", "one")
    assert brief.source == built_in_source("direction")
    parts = re.split(r"^## ", brief.prompt, flags=re.MULTILINE)
    told = {part.partition("\n")[0]: " ".join(part.split()) for part in parts}
    assert "Proposal 4, try 1: rewrite the function `direction`." in parts[0]
    assert "- `knobs.momentum`: float32 scalar" in told["Contract"]
    assert "[8, 8]" in told["Contract"]
    parent = told["The source to edit: candidate nanochat"]
    assert "validation 2.0000 bpb (equal to the baseline)" in parent
    assert "ahead = x + knobs.momentum * (buffer - x)" in parent
    other = told["Another good candidate: p0000"]
    assert "ahead = x + 0.8 * (buffer - x)" in other
    assert "score +0.0100, validation 1.9900 bpb (0.0100 better than the baseline), cost" in other
    assert "training loss in nats at steps 0, 1, 3, 5: 5, 4, 3.2, 3" in other
    failed = told["What failed, and why"]
    assert "- import: line 1: imports are not allowed" in failed
    assert "- dead: non-finite loss at step 3 ```python ruined = 1 ```" in failed
    tried = told["What has been tried"]
    assert (
        "- p0000: `ahead = x + 0.8 * (buffer - x)`: score " in tried
        and "died (non-finite loss)" in tried
    )
    assert "- p0003: again: computes what p0000 computes" in tried
