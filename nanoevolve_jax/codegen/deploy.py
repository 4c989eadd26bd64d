"""Sends candidates to a Ray cluster, to be trained there beside their baseline.

  python -m nanoevolve_jax.codegen.deploy runs/mine:g002c06 runs/mine:g001c03
  python -m nanoevolve_jax.codegen.deploy trust_ratio mine.json --address=http://10.0.0.7:8265
  python -m nanoevolve_jax.codegen.deploy --stop

A candidate is DIR:ID, a preset or a JSON file with a spec; one of a run folder is trained as its
search was, on `compare.seeds` seeds and the devices given here. What is sent needs nothing of this
machine, and the same candidate is sent once. Without an address a Ray of one's own is started,
which goes on until `--stop`. `trace` follows a job, `status` lists all.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags
from ml_collections import ConfigDict

from nanoevolve_jax import command
from nanoevolve_jax.codegen.deployment import book, cluster, reply, server
from nanoevolve_jax.codegen.deployment.folder import Order, make_folder, portable
from nanoevolve_jax.codegen.sandbox import recertify
from nanoevolve_jax.configs.base import SAME
from nanoevolve_jax.evidence.calibration_file import UNCALIBRATED
from nanoevolve_jax.evidence.comparison import Arm, shared_seeds
from nanoevolve_jax.evidence.seeds import SCREEN_FOLD
from nanoevolve_jax.evolution.promote import arm_of
from nanoevolve_jax.evolution.run_folder import require_own
from nanoevolve_jax.execution.received import corpus_here, is_folder, received
from nanoevolve_jax.execution.settings import ConfigError, make_baseline
from nanoevolve_jax.reporting.history import History, read_history
from nanoevolve_jax.reporting.naming import named_arm
from nanoevolve_jax.terminal import streams

FOLDER = "deployed"  # of a run folder
SENT = "sent"  # of FOLDER: the folders of jobs, by their ids
_TEXT = ("corpus", "tokenizer")

_ADDRESS = flags.DEFINE_string(
    "address", server.LOCAL, "of the jobs server: local, local:DIR or http://HOST:PORT"
)
_STOP = flags.DEFINE_bool("stop", False, "end the local Ray and whatever it runs")


class Deployment(NamedTuple):
    """A candidate on its way."""

    name: str  # as the user gave it
    order: Order
    corpus: str  # of the config it comes from
    place: Path  # run folder


def deployment(name: str, config: ConfigDict) -> Deployment:
    """What is sent for a name.

    Args:
      name: DIR:ID, a preset, or a JSON file.
      config: of candidates that are in no run folder; its `compare.seeds` is that of all.

    Raises:
      SpecError, ArchiveError: if there is nothing of that name, or it is invalid.
      ConfigError: if the config has a calibration, which holds for this machine only.
    """
    folder, colon, candidate = name.rpartition(":")
    if colon and folder and not name.endswith(".json"):
        history = read_history(Path(folder), "candidate's folder")
        records = history.record(candidate), history.baseline
        arms = [arm_of(record, history.folder) for record in records]
        prints = history.description.get("fingerprints", {})
        known = {kind: prints[kind] for kind in _TEXT if kind in prints}
        place, text = history.folder, known or None
        config = _config_of(history, config, known.get("corpus"))
    elif config.calibration != UNCALIBRATED:
        raise ConfigError(
            f"config.calibration is {config.calibration!r}; allowed: none, or a candidate DIR:ID "
            "of a search that was calibrated"
        )
    else:
        baseline = make_baseline(config)
        arms = [named_arm(name, baseline), Arm("baseline", baseline, {})]
        place, text = Path(config.workdir), None
    steps, seeds = config.train.steps, tuple(shared_seeds(config))
    order = Order(portable(config), *arms, seeds, SCREEN_FOLD, steps, text)
    return Deployment(name, order, config.data.corpus, place)


def _config_of(history: History, here: ConfigDict, fingerprint: str | None) -> ConfigDict:
    """The config of a run folder's candidate: places, devices and seeds are those given here.

    Raises:
      ConfigError: if its text is a folder that is not found on this machine.
    """
    source = str(history.folder / "config.json")
    config = received(history.config.to_dict(), here, source)
    both = is_folder(config.data.corpus) and is_folder(here.data.corpus)
    given = here.data.corpus if both else SAME
    config.data.corpus = corpus_here(
        *(config.data.corpus, given, here.data.cache_dir, fingerprint, "data.corpus", source)
    )
    config.compare = here.compare
    return config


def deploy(config: ConfigDict, names: Sequence[str]) -> None:
    """The command."""
    cache = Path(config.data.cache_dir)
    address = server.absolute(_ADDRESS.value, cache)
    log = streams.print_line
    if _STOP.value:
        if names:
            command.fail(f"arguments are {' '.join(names)!r}; allowed: none beside --stop")
        ended = server.end_local(address)
        log("the local Ray has ended" if ended else "no local Ray runs")
        return
    if not names:
        command.fail("candidates are 0; allowed: one or more, each DIR:ID, a preset or a JSON file")
    found = [deployment(name, config) for name in names]  # mistakes come before anything is sent
    codes = [arm.code for one in found for arm in one.order.arms.values()]
    recertify.require_validated(codes, config.codegen.isolation)
    for one in found:
        log(_sent(one, address, cache))
    log("python -m nanoevolve_jax.codegen.trace JOB follows one; status, in its place, lists all")


def _sent(found: Deployment, address: str, cache: Path) -> str:
    """Sends a candidate and enters it into the book; what is to be said of that."""
    name, order, corpus, place = found
    require_own(place)
    folder = make_folder(order, place / FOLDER / SENT, corpus)
    results = (place / FOLDER / folder.name).absolute()
    entry = book.Entry(folder.name, name, address, str(results), time.time())
    if entry.result is not None:
        return f"{name}: {entry.job}, fetched before: {reply.in_words(entry.result)}"
    cluster.submit(folder, address, candidate=order.candidate.id, again=True)
    book.enter(cache, entry)
    return f"{name}: {entry.job}, {cluster.poll(entry.job, address).status}"


if __name__ == "__main__":
    command.run(deploy, arguments=True, often=("workdir", "compare.seeds", "data.cache_dir"))
