"""Targets: islands, migration, and the candidates in a proposal's prompt."""

import numpy as np
import pytest
from certified_code import entry
from records import make_dead, make_record

from nanoevolve_jax.codegen.campaign.state import State, draw_target
from nanoevolve_jax.configs import codegen as codegen_config

ISLANDS, EVERY, KNOWN = 3, 4, 24


def rules_with(islands, migrate, parents=3, tournament=2):
    """Returns a config that rewrites `direction`."""
    config = codegen_config.get_config()
    config.seed, config.codegen.scope = 0, "matrix"
    config.codegen.islands, config.codegen.migrate = islands, migrate
    config.search.survivors, config.search.tournament = parents, tournament
    return config


def lines_of_descent():
    """Returns a campaign whose first island is by far the best."""
    names = [f"p{number:04d}" for number in range(KNOWN)]
    scores = np.random.default_rng(0).uniform(1.0, 2.0, KNOWN)
    records = [
        make_record(name, score=score + 9.0 * (number % ISLANDS == 0), generation=1)
        for number, (name, score) in enumerate(zip(names, scores, strict=True))
    ]
    entries = [entry(n, island=n % ISLANDS) for n in range(KNOWN)]
    return State(tuple(entries), (make_record(), *records))


@pytest.mark.parametrize("every", [EVERY, 0])
def test_parents_come_from_their_own_island_except_for_migrants(every):
    known = lines_of_descent()
    rules = rules_with(ISLANDS, every)
    turns = range(KNOWN // ISLANDS, 10 * EVERY)
    homes = {"own": [], "other": []}
    for turn in turns:
        for island in range(ISLANDS):
            target = draw_target(turn * ISLANDS + island, known, rules)
            born = int(target.parent[1:]) % ISLANDS
            assert target.island == island
            homes["own" if born == island else "other"].append((turn, island, born))
    migrants = [turn for turn in turns if every and turn % every == every - 1]
    assert [turn for turn, *_ in homes["other"]] == [t for t in migrants for _ in range(ISLANDS)]
    assert all(born == (island + 1) % ISLANDS for _, island, born in homes["other"])
    assert len(homes["own"]) == ISLANDS * (len(turns) - len(migrants))


def test_mutants_belong_to_the_island_of_their_candidate_and_failures_to_none():
    entries = tuple(entry(n, island=n) for n in range(2))
    records = (
        make_record(),
        *(make_record("p0000", score=1.0), make_record("p0000m1", score=9.0)),
        *(make_dead("p0001"), make_record("m0001", score=99.0)),
    )
    records = tuple(r._replace(generation=int(r.id != "nanochat")) for r in records)
    known = State(entries, records).before(2)
    rules = rules_with(2, 0, parents=1, tournament=1)
    assert [draw_target(number, known, rules).parent for number in (2, 3)] == [
        "p0000m1",
        "nanochat",
    ]


def test_an_island_sees_its_own_best_beside_the_best_of_all():
    known, rules = lines_of_descent(), rules_with(ISLANDS, 0)
    known = known._replace(records=tuple(r._replace(code={"source": ""}) for r in known.records))
    ranked = sorted(known.records[1:], key=lambda record: -record.score)
    for number in range(KNOWN, KNOWN + 12):
        target = draw_target(number, known, rules)
        own = [r.id for r in ranked if int(r.id[1:]) % ISLANDS == target.island]
        others = [r.id for r in ranked if r.id != target.parent]
        wanted = [name for name in own if name != target.parent][:1]
        assert target.shown == tuple(dict.fromkeys([*wanted, *others]))[:2]
        assert own[0] in (target.parent, *target.shown)
        assert ranked[0].id in (target.parent, *target.shown)
