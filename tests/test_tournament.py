"""Founders, children and survivors are pure functions of the records and (seed, generation)."""

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records import make_dead, make_record
from specs import flat

from nanoevolve_jax.configs import base
from nanoevolve_jax.evolution import tournament
from nanoevolve_jax.policy.canonical import canonical
from nanoevolve_jax.policy.mutations import OPERATORS
from nanoevolve_jax.policy.spec import FIELDS, NANOCHAT, PRESETS, get_field

RECIPE = {name: value for name, value in base.get_config().recipe.items()}
SEARCH = {"generation": 1, "seed": 0, "population": 12, "parents": 3, "tournament": 2}
SEARCH |= {"control_every": 0}


def founding_records(**scores):
    """Returns generation 0 with a score for each founder."""
    return [
        make_record(p.id, spec=p.spec, score=scores.get(p.id, 0.0), parent_id=p.parent_id)
        for p in tournament.founders(NANOCHAT)
    ]


def grow(records, proposals, seed=0):
    """Returns the records with those of the proposals, some of which failed."""
    rng = random.Random(seed)
    grown = []
    for p in proposals:
        fields = {**p._asdict(), "name": p.id}
        fields.pop("id")
        dead = rng.random() < 0.2
        grown.append(make_dead(**fields) if dead else make_record(score=rng.random(), **fields))
    return [*records, *grown]


def test_the_baseline_comes_first_and_the_other_presets_descend_from_it():
    founders = tournament.founders(NANOCHAT)
    assert [p.spec for p in founders] == list(PRESETS.values())
    assert founders[0].spec == NANOCHAT
    assert founders[0][1:5] == (None, 0, None, None)
    for founder in founders[1:]:
        assert founder.parent_id == founders[0].id
        (path,) = (p for p in FIELDS if get_field(founder.spec, p) != get_field(NANOCHAT, p))
        assert founder.change == f"{path} off -> on"


@given(seed=st.integers(0, 2**31 - 1), generation=st.integers(1, 100_000))
@settings(max_examples=30)
def test_children_are_a_function_of_seed_and_generation(seed, generation):
    records = founding_records(nanochat=0.0, trust_ratio=0.2, annealing=-0.1)
    search = SEARCH | {"seed": seed, "generation": generation, "population": 4}
    children = tournament.children(records, RECIPE, **search)
    assert tournament.children(list(reversed(records)), RECIPE, **search) == children
    for other in ({"seed": seed + 1}, {"generation": generation + 1}):
        others = tournament.children(records, RECIPE, **search | other)
        assert [c.spec for c in others] != [c.spec for c in children]


def campaign(generations=6, seed=0):
    """Returns the records of a simulated campaign, and its proposals by generation."""
    records, proposed = founding_records(), []
    for generation in range(1, generations + 1):
        search = SEARCH | {"generation": generation, "seed": seed}
        proposed.append((list(records), tournament.children(records, RECIPE, **search)))
        records = grow(records, proposed[-1][1], seed=generation)
    return records, proposed


@pytest.mark.parametrize("seed", [0, 1])
def test_no_two_candidates_of_a_campaign_are_the_same_policy_or_share_a_name(seed):
    records, _ = campaign(seed=seed)
    assert len(records) == 3 + 6 * 12
    assert len({canonical(record.spec) for record in records}) == len(records)
    assert len({record.id for record in records}) == len(records)


def test_every_parent_survives_and_no_dead_candidate_has_children():
    records, proposed = campaign()
    assert any(record.failure for record in records)
    for known, children in proposed:
        alive = sorted((r for r in known if r.failure is None), key=lambda r: -r.score)
        best = {r.id for r in alive[: SEARCH["parents"]]}
        assert {child.parent_id for child in children} <= best


def test_a_child_differs_from_its_parent_in_one_field_and_says_so():
    records, proposed = campaign()
    by_id = {record.id: record for record in records}
    for number, (_, children) in enumerate(proposed, start=1):
        for child in children:
            old, new = flat(by_id[child.parent_id].spec), flat(child.spec)
            (path,) = (p for p in FIELDS if old[p] != new[p])
            assert child.change.startswith(f"{path} ")
            assert child.operator in OPERATORS
            assert child.generation == number


def test_one_survivor_has_all_the_children_and_it_is_the_best():
    records = founding_records(nanochat=0.0, trust_ratio=0.5, annealing=0.1)
    children = tournament.children(records, RECIPE, **SEARCH | {"parents": 1})
    assert {child.parent_id for child in children} == {"trust_ratio"}


def test_a_larger_tournament_prefers_better_parents():
    records = founding_records(nanochat=0.0, trust_ratio=0.5, annealing=0.1)

    def share_of_best(size):
        children = tournament.children(
            records, RECIPE, **SEARCH | {"tournament": size, "population": 120, "seed": 3}
        )
        return sum(child.parent_id == "trust_ratio" for child in children) / len(children)

    # The best of three wins unless it is never drawn, which has probability (2/3)^n.
    assert share_of_best(1) == pytest.approx(1 / 3, abs=0.15)
    assert share_of_best(3) == pytest.approx(1 - (2 / 3) ** 3, abs=0.15)
    assert share_of_best(40) == 1.0


SCORES = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 0.5, 2.0]), min_size=1, max_size=10)


@given(SCORES, st.lists(st.booleans(), min_size=10, max_size=10), st.integers(1, 12), st.randoms())
def test_survivors_are_the_best_alive_whatever_the_order(scores, deaths, count, shuffler):
    records = [
        # A dead candidate does not survive even with the best score.
        make_dead(f"c{i}", score=math.inf) if dead else make_record(f"c{i}", score=score)
        for i, (score, dead) in enumerate(zip(scores, deaths, strict=False))
    ]
    alive = [r for r in records if r.failure is None]
    kept = tournament.survivors(records, count)
    assert len(kept) == min(count, len(alive))
    assert [r.score for r in kept] == sorted((r.score for r in alive), reverse=True)[:count]
    assert all(r.failure is None for r in kept)
    shuffled = list(records)
    shuffler.shuffle(shuffled)
    assert tournament.survivors(shuffled, count) == kept


def test_of_equals_the_older_survives():
    records = [
        make_record("g002c00", score=1.0, generation=2),
        make_record("g001c01", score=1.0, generation=1),
        make_record("g001c00", score=1.0, generation=1),
    ]
    kept = [r.id for r in tournament.survivors(records, 3)]
    assert kept == ["g001c00", "g001c01", "g002c00"]


def test_every_eighth_child_of_a_campaign_changes_the_recipe_alone():
    records = founding_records(nanochat=0.0, trust_ratio=0.5, annealing=0.1)
    search = SEARCH | {"control_every": 8, "population": 12}
    for generation in (1, 2, 3):
        children = tournament.children(records, RECIPE, **search | {"generation": generation})
        slots = [(generation - 1) * 12 + i + 1 for i in range(12)]
        controls = [c for c, slot in zip(children, slots, strict=True) if slot % 8 == 0]
        assert [c for c in children if c.recipe is not None] == controls
        for child in controls:
            parent = tournament.best_control(records)
            assert child.parent_id == (parent.id if parent else "nanochat")
            own = {"momentum", "second_moment_beta"}
            old, new = flat(NANOCHAT), flat(child.spec)
            assert {p for p in FIELDS if old[p] != new[p]} == own & set(child.recipe)
            before = RECIPE | ((parent and parent.recipe) or {})
            changed = {n for n in RECIPE if before[n] != (RECIPE | child.recipe)[n]}
            adamw = {"embedding_lr", "unembedding_lr", "scalar_lr"}
            assert len(changed) == 1 or changed <= adamw
        records = grow(records, children, seed=generation)


def test_no_policy_descends_from_a_control_and_no_control_counts_as_a_survivor():
    best = make_record("g001c07", score=9.0, generation=1, recipe={"matrix_lr": 0.03})
    records = [*founding_records(nanochat=0.0), best]
    assert best not in tournament.survivors(records, 10)
    children = tournament.children(records, RECIPE, **SEARCH | {"generation": 2})
    assert {child.parent_id for child in children} <= {"nanochat", "trust_ratio", "annealing"}
    (settled,) = tournament.settle(records[:-1], [best], parents=1)
    assert settled.status == "survivor"


def test_settling_gives_the_fresh_records_their_status_and_their_place_on_the_front():
    baseline = make_record("nanochat", bpb=2.0, cost=10.0)
    better = make_record("a", score=0.3, bpb=1.7, cost=20.0)
    cheap = make_record("b", score=-0.5, bpb=2.5, cost=5.0)
    worse = make_record("c", score=-0.2, bpb=2.2, cost=30.0)
    dead = make_dead("d", cost=1.0)
    settled = tournament.settle([], [baseline, better, cheap, worse, dead], parents=2)
    assert [r.id for r in settled] == ["nanochat", "a", "b", "c", "d"]
    assert [r.status for r in settled] == ["baseline", "survivor", "rejected", "rejected", "dead"]
    assert [r.pareto for r in settled] == [True, True, True, False, False]


def test_settling_compares_with_every_earlier_record_and_leaves_it_alone():
    earlier = [make_record("nanochat", bpb=2.0, score=0.0), make_record("a", bpb=1.5, score=0.5)]
    fresh = [make_record("b", bpb=1.6, score=0.4), make_record("c", bpb=1.4, score=0.6)]
    b, c = tournament.settle(earlier, fresh, parents=2)
    assert (b.status, b.pareto) == ("survivor" if b.score > 0.5 else "rejected", False)
    assert (c.status, c.pareto) == ("survivor", True)
    assert len(tournament.settle(earlier, fresh, parents=2)) == 2


def test_the_baseline_that_fails_is_dead_like_any_other():
    (record,) = tournament.settle([], [make_dead("nanochat")], parents=1)
    assert record.status == "dead"
    assert not record.pareto


def test_lineage_leads_from_the_founder_to_the_candidate():
    records, _ = campaign()
    by_id = {record.id: record for record in records}
    for record in records:
        chain = tournament.lineage(records, record.id)
        assert chain[0].id == "nanochat"
        assert chain[-1] == record
        for parent, child in itertools.pairwise(chain):
            assert child.parent_id == parent.id
            assert by_id[child.parent_id].generation <= child.generation
