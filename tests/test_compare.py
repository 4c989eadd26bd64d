"""Comparisons of given specs: pairs, separate seeds, and a separate folder."""

import contextlib
import io
import json

import numpy as np
import pytest
from benches import arm, make_bench
from test_search import SETTINGS, make_config, write_corpus

from nanoevolve_jax import compare, site
from nanoevolve_jax.evidence import comparison
from nanoevolve_jax.evidence.sealed import read_sealed
from nanoevolve_jax.evidence.seeds import SCREEN_FOLD, Stage, stage_seed
from nanoevolve_jax.evolution.archive import ArchiveError
from nanoevolve_jax.execution.engine import LocalEngine
from nanoevolve_jax.execution.settings import ConfigError
from nanoevolve_jax.policy.spec import NANOCHAT, TRUST_RATIO
from nanoevolve_jax.policy.spec_json import SpecError, spec_to_json

# Decisions ---------------------------------------------------------------------------------


def lower_with_trust_ratio(job):
    """Returns a bpb that trust ratio lowers by about 0.5; a seed shifts all its runs equally."""
    gain = job.candidate.spec.trust_ratio * (0.5 + (job.seed % 2 - 0.5) / 100)
    return 2.0 + (job.seed % 7) / 10 - gain


def test_gains_are_paired_by_seed_and_positive_when_the_other_is_better():
    bench = make_bench(lower_with_trust_ratio)
    results = comparison.explore(bench, [arm("a"), arm("b", TRUST_RATIO)])
    assert "gain" not in results["specs"][0]
    gain = results["specs"][1]["gain"]
    assert (gain["mean"], gain["n"]) == (pytest.approx(0.5), 4)
    assert gain["sd"] == pytest.approx(0.01 / 3**0.5)  # the shared part of the seeds cancels
    assert results["bpb"].shape == (2, 4)
    assert results["specs"][1]["mean_bpb"] == pytest.approx(results["bpb"][1].mean())


def test_a_failed_run_is_never_dropped():
    first = stage_seed(Stage.COMPARE, 0, 0)
    bench = make_bench(lambda job: np.nan if job.seed == first else 2.0)
    results = comparison.explore(bench, [arm("a"), arm("b", TRUST_RATIO)])
    assert results["specs"][1]["gain"]["mean"] == -np.inf
    assert results["specs"][1]["gain"]["p"] == 1.0
    assert results["specs"][1]["failures"] == {str(first): "loss is not finite"}


def test_neither_seeds_nor_text_are_those_of_another_stage():
    bench = make_bench(lambda job: 2.0, seed=3, compare__seeds=64)
    comparison.explore(bench, [arm("a"), arm("b", TRUST_RATIO)])
    jobs = bench.runs.of(comparison.COMPARE_STAGE)
    seeds = {job.seed for job in jobs}
    others = {
        stage_seed(stage, 3, i) for stage in Stage if stage != Stage.COMPARE for i in range(2048)
    }
    assert len(seeds) == 64 and not seeds & others
    assert {job.fold for job in jobs} == {SCREEN_FOLD}
    assert len(jobs) == 128


def test_more_seeds_begin_with_fewer():
    few, many = (make_bench(None, compare__seeds=n).config for n in (4, 9))
    assert comparison.shared_seeds(many)[:4] == comparison.shared_seeds(few)


# The command, on a tiny model --------------------------------------------------------------


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    write_corpus(folder / "corpus")
    twin = spec_to_json(NANOCHAT._replace(clip_threshold=3.0))  # nothing reads this field
    (folder / "twin.json").write_text(json.dumps(twin))
    return folder


def config_of(workshop, name="run", **changes):
    places = {
        "data.corpus": f"parquet:{workshop / 'corpus'}",
        "data.cache_dir": str(workshop / "cache"),
    }
    return make_config(SETTINGS | places, workshop / name, **changes)


def act(config, *names):
    patch, output = pytest.MonkeyPatch(), io.StringIO()
    with patch.context() as p, contextlib.redirect_stdout(output):
        p.setattr(site, "use_devices", lambda config: config.devices)  # JAX is already initialised
        compare.compare(config, [str(name) for name in names])
    return output.getvalue()


@pytest.fixture(scope="module")
def compared(workshop):
    config = config_of(workshop, compare__seeds=2)
    return act(config, "nanochat", "trust_ratio", workshop / "twin.json")


def document(workshop, name="run"):
    return read_sealed(workshop / name / "compare" / "comparison.json", compare.KIND)


def test_a_comparison_prints_pairs_and_where_they_lie(workshop, compared):
    results = document(workshop)
    bpb = np.array(results["bpb"])
    assert bpb.shape == (2, 2) and np.isfinite(bpb).all()
    gain = results["specs"][1]["gain"]
    assert gain["mean"] == pytest.approx((bpb[0] - bpb[1]).mean())
    assert results["seeds"] == [stage_seed(Stage.COMPARE, 0, i) for i in (0, 1)]
    assert results["exploratory"] and results["config"]["compare"]["seeds"] == 2
    assert f"{gain['mean']:+.4f}" in compared
    for value in bpb.ravel():
        assert f"{value:.4f}" in compared
    words = " ".join(compared.split())
    assert "confirms nothing" in words
    assert "twin.json" in words and "same policy as nanochat" in words
    assert "comparison.json" in words


def test_its_page_fits_80_columns(workshop, compared):
    page = compared[compared.index("mean bpb") :].splitlines()[:-1]  # a path may be longer
    assert max(map(len, page)) <= 80


def test_the_search_in_the_same_place_is_left_alone(workshop, compared):
    assert {path.name for path in (workshop / "run").iterdir()} == {"compare"}


def test_known_runs_are_not_made_again_and_more_seeds_add_to_them(workshop, compared, monkeypatch):
    before = document(workshop)
    trained = []
    run = LocalEngine.run

    def counted(self, jobs, *arguments):
        trained.extend(jobs)
        return run(self, jobs, *arguments)

    monkeypatch.setattr(LocalEngine, "run", counted)
    act(config_of(workshop, compare__seeds=2), "nanochat", "trust_ratio", workshop / "twin.json")
    assert not trained and document(workshop) == before
    act(config_of(workshop, compare__seeds=3), "trust_ratio", "nanochat")
    assert len(trained) == 2
    assert [row[:2] for row in document(workshop)["bpb"]] == before["bpb"][::-1]


def test_a_folder_of_other_settings_is_refused(workshop, compared):
    with pytest.raises(ArchiveError, match=r"train\.steps"):
        act(config_of(workshop, train__steps=5), "nanochat", "trust_ratio")


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (["nanochat"], SpecError, "specs must be two or more"),
        (["nanochat", "{twin}"], SpecError, "all the same policy"),
        (["nanochat", "anealing"], SpecError, "such as annealing"),
        (["nanochat", "nowhere:g001c00"], ArchiveError, "the run folder of a search"),
    ],
)
def test_a_mistake_is_named_before_anything_is_made(workshop, names, error, message):
    config = config_of(workshop, "refused")
    with pytest.raises(error, match=message):
        act(config, *(name.format(twin=workshop / "twin.json") for name in names))
    assert not (workshop / "refused").exists()


def test_a_plan_is_refused(workshop):
    with pytest.raises(ConfigError, match="must be False, because a comparison"):
        act(config_of(workshop, plan=True), "nanochat", "annealing")
