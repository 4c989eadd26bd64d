"""The parts of the command `autonomous` around its loop; slow tests run complete campaigns."""

import io
from types import SimpleNamespace

import pytest
from certified_code import entry
from records import make_record
from scripted_mutator import profile

from nanoevolve_jax.codegen import autonomous
from nanoevolve_jax.codegen.campaign import setup
from nanoevolve_jax.codegen.campaign.state import State, Status
from nanoevolve_jax.codegen.mutators.providers import ProviderError
from nanoevolve_jax.configs import codegen as codegen_config
from nanoevolve_jax.evolution import proposals
from nanoevolve_jax.evolution.archive import ArchiveError
from nanoevolve_jax.evolution.campaign import ARCHIVE
from nanoevolve_jax.execution import ray_server
from nanoevolve_jax.execution.engine import Progress
from nanoevolve_jax.terminal.console import Console
from nanoevolve_jax.terminal.display import Display


def test_a_campaign_that_died_before_its_first_proposal_can_be_resumed(tmp_path):
    (tmp_path / ARCHIVE).touch()
    with pytest.raises(ArchiveError, match="the folder of a search"):
        setup.require_campaign_folder(tmp_path)
    setup.claim(tmp_path)
    setup.claim(tmp_path)
    setup.require_campaign_folder(tmp_path)


def test_a_proposal_under_way_keeps_its_provider_in_another_ensemble(tmp_path):
    config = codegen_config.get_config()
    config.codegen.providers = str(tmp_path / "providers.toml")
    (tmp_path / "providers.toml").write_text(profile("new") + profile("earlier"))
    config.codegen.ensemble = "new"
    profile_of = setup.ensemble_of(config)
    assert profile_of("earlier").name == "earlier"
    with pytest.raises(ProviderError, match=r"^the provider of a proposal under way .* got 'gone'"):
        profile_of("gone")
    config.codegen.ensemble = "gone"
    with pytest.raises(ProviderError, match=r"^config\.codegen\.ensemble must be one of new"):
        setup.ensemble_of(config)


def test_progress_is_one_line_that_stays_after_a_proposal_is_reported():
    text, steps, width = io.StringIO(), 10, 2
    display = Display(
        Console(file=text, width=200), total_steps=steps, batch_tokens=1.0, task="code"
    )
    display._printed = float("-inf")  # plain lines are at least some seconds apart
    tracking = SimpleNamespace(records=lambda records: None)
    records = (make_record("nanochat", bpb=3.0), make_record("p0000", bpb=2.5, score=0.5))
    known = State((entry(0), entry(1, outcome=proposals.REFUSED, candidate=None)), records)
    on_event = autonomous.reporter(display, tracking, steps, width)
    on_event(Status(known, 5, 2, 1), known.entries[0])
    display.on_progress(Progress(1, 5, steps, [[]], [2.5], ("p0002",)))
    display.on_progress(Progress(1, steps, steps, [[]], [2.5], ("p0002",)))
    outcome, line = text.getvalue().splitlines()
    assert outcome.startswith("p0000 direction of nanochat by scripted: 2.5000 bpb, -0.5000")
    assert line.startswith("10/80 steps | val bpb 2.5000 | 2 of 5 proposals done, 1 of them ")
    assert ", 2 asked for, 1 answered | best p0000 2.5000 bpb, -0.5000 | $0.5000 spent | " in line


@pytest.mark.parametrize("address", ["local", "http://10.0.0.7:8265"])
def test_candidates_are_sent_to_the_cluster_of_the_other_commands(tmp_path, address):
    config = codegen_config.get_config()
    config.data.cache_dir, config.codegen.address = str(tmp_path), address
    engine = setup.screening_engine(SimpleNamespace(task=None), config, {}, None)
    assert engine.pool.address == ray_server.absolute(address, tmp_path)
