"""Sends candidates to a Ray cluster, where they are trained together with their baseline.

  python -m nanoevolve_jax.codegen.deploy runs/mine:g002c06 runs/mine:g001c03
  python -m nanoevolve_jax.codegen.deploy trust_ratio mine.json --address=http://10.0.0.7:8265
  python -m nanoevolve_jax.codegen.deploy --stop

A candidate is DIR:ID, a preset or a JSON file with a spec. DIR:ID is trained with the config of its
run folder, on `compare.seeds` seeds and the devices given here. Without an address, Ray is started
on this machine and runs until `--stop`. `trace` follows a job, and `status` lists all jobs.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags
from ml_collections import ConfigDict

from nanoevolve_jax import command
from nanoevolve_jax.codegen.deployment import jobs, registry
from nanoevolve_jax.codegen.deployment.folder import Submission, make_folder, portable
from nanoevolve_jax.codegen.sandbox import recertify
from nanoevolve_jax.configs.base import SAME
from nanoevolve_jax.errors import must
from nanoevolve_jax.evidence.calibration_file import UNCALIBRATED
from nanoevolve_jax.evidence.comparison import Arm, Bench, shared_seeds
from nanoevolve_jax.evidence.seeds import SCREEN_FOLD
from nanoevolve_jax.evolution.promotion import arm_of
from nanoevolve_jax.evolution.run_folder import require_own
from nanoevolve_jax.execution import ray_server
from nanoevolve_jax.execution.settings import (
    ConfigError,
    corpus_here,
    is_folder,
    make_baseline,
    received,
)
from nanoevolve_jax.reporting.history import History, read_history
from nanoevolve_jax.reporting.policies import named_arm
from nanoevolve_jax.terminal import streams

FOLDER, SENT = "deployed", "sent"  # subfolder of a run folder, and its subfolder of sent jobs
_ADDRESS = flags.DEFINE_string(
    "address", ray_server.LOCAL, "address of the jobs server: local, local:DIR or http://HOST:PORT"
)
_STOP = flags.DEFINE_bool("stop", False, "end the local Ray and its jobs")


class Deployment(NamedTuple):
    """Candidate to send."""

    name: str  # name that the user gave
    submission: Submission
    corpus: str  # corpus of the candidate's config
    place: Path  # run folder in which the job's folder and its result are stored


def deployment(name: str, config: ConfigDict) -> Deployment:
    """Returns the deployment of a candidate: its training runs and those of its baseline.

    Args:
      name: Name of the candidate: DIR:ID, a preset or a JSON file.
      config: Configuration of this command. A candidate DIR:ID is trained with the config of its
        run folder instead, except for paths, devices and the group `compare`.

    Raises:
      SpecError: If the candidate's spec does not exist or is invalid.
      ArchiveError: If the run folder cannot be read or does not contain the candidate.
      ConfigError: If the config has a calibration and the candidate is not DIR:ID. A calibration is
        valid only for the machine that it was measured on.
    """
    folder, _, candidate = name.rpartition(":")
    place, text = Path(config.workdir), None
    if folder and not name.endswith(".json"):
        history = read_history(Path(folder), "candidate's folder")
        records, place = (history.record(candidate), history.baseline), history.folder
        arms = [arm_of(record, place) for record in records]
        prints = history.description.get("fingerprints", {})
        text = {kind: prints[kind] for kind in ("corpus", "tokenizer") if kind in prints} or None
        config = _config_of(history, config, prints.get("corpus"))
    elif config.calibration != UNCALIBRATED:
        rule = "be none, unless candidates are DIR:ID of a calibrated search"
        raise ConfigError(must("config.calibration", rule, config.calibration))
    else:
        baseline = make_baseline(config)
        arms = [named_arm(name, baseline), Arm("baseline", baseline, {})]
    bench, steps = Bench(config, None), config.train.steps
    runs = [[bench.job(arm, s, SCREEN_FOLD, steps) for s in shared_seeds(config)] for arm in arms]
    by_arm = dict(zip(("candidate", "baseline"), runs, strict=True))
    return Deployment(name, Submission(portable(config), by_arm, text), config.data.corpus, place)


def _config_of(history: History, here: ConfigDict, fingerprint: str | None) -> ConfigDict:
    """Returns the config of a run folder with the paths and devices of this machine."""
    source = str(history.folder / "config.json")
    config = received(history.config.to_dict(), here, source)
    both = is_folder(config.data.corpus) and is_folder(here.data.corpus)
    given, cache = here.data.corpus if both else SAME, here.data.cache_dir
    config.data.corpus = corpus_here(
        config.data.corpus, given, cache, fingerprint, "data.corpus", source
    )
    config.compare = here.compare
    return config


def deploy(config: ConfigDict, names: Sequence[str]) -> None:
    """Sends candidates to a cluster, or stops the local Ray.

    Args:
      config: Full configuration of this machine.
      names: Names of the candidates: DIR:ID, presets or JSON files. Empty with `--stop`.

    Raises:
      UserError: If a candidate cannot be sent. All candidates are checked before the first is sent.
    """
    cache = Path(config.data.cache_dir)
    address = ray_server.absolute(_ADDRESS.value, cache)
    if _STOP.value:
        if names:
            command.fail(must("arguments", "be absent with --stop", " ".join(names)))
        ended = ray_server.stop(address)
        streams.print_line("the local Ray has ended" if ended else "no local Ray runs")
        return
    if not names:
        command.fail("candidates must be given: DIR:ID, presets or JSON files")
    deployments = [deployment(name, config) for name in names]  # checks all before any is sent
    runs = [job for d in deployments for own in d.submission.arms.values() for job in own]
    codes = [code for job in runs if (code := job.candidate.code)]
    recertify.require_validated(codes, config.codegen.isolation)
    for each in deployments:
        streams.print_line(f"{each.name}: {_send(each, address, cache)}")
    streams.print_line("`trace JOB` in place of `deploy` follows a job; `status` lists all jobs")


def _send(each: Deployment, address: str, cache: Path) -> str:
    """Sends a candidate, registers its job and returns a phrase with the job's id and status."""
    require_own(each.place)
    folder = make_folder(each.submission, each.place / FOLDER / SENT, each.corpus)
    results = (each.place / FOLDER / folder.name).absolute()
    entry = registry.Entry(folder.name, each.name, address, str(results), time.time())
    if entry.result is not None:
        return f"{entry.job}, fetched before: {registry.summary(entry.result)}"
    jobs.submit(folder, address, each.name.rpartition(":")[2])
    registry.add(cache, entry)
    return f"{entry.job}, {jobs.poll(entry.job, address).status}"


if __name__ == "__main__":
    command.run(deploy, arguments=True, often=("workdir", "compare.seeds", "data.cache_dir"))
