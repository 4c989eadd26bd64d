"""Trains a candidate and its baseline on the same seeds, with the engine that searches use."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from nanoevolve_jax.codegen.deployment import reply
from nanoevolve_jax.codegen.deployment.folder import Order, read_folder
from nanoevolve_jax.codegen.deployment.intact import FolderError
from nanoevolve_jax.evidence.comparison import Bench
from nanoevolve_jax.evidence.runs import Run, Runs
from nanoevolve_jax.evidence.work import MAIN
from nanoevolve_jax.execution.engine import Progress
from nanoevolve_jax.execution.facts import Facts
from nanoevolve_jax.execution.json_files import finite_or_null
from nanoevolve_jax.execution.program_cache import private_folder, user_cache
from nanoevolve_jax.execution.train import TELEMETRY
from nanoevolve_jax.policy.certified import CertificateError, Code
from nanoevolve_jax.policy.slots import SCALAR, shape_key
from nanoevolve_jax.site import local_site
from nanoevolve_jax.terminal import streams
from nanoevolve_jax.terminal.console import Console

STAGE = "deployment"
_QUIET_SECONDS = 2.0  # between lines of progress
_FIELDS = (
    *("val_bpb", "train_loss", "failure", "failed_step", "steps", "instability", "tokens"),
    "curve",
)


def train(
    order: Order,
    console: Console,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, Any]:
    """Trains both arms of an order on this machine.

    Args:
      order: what is trained.
      console: for progress of the text.
      on_progress: hears of running jobs.

    Returns:
      JSON: `candidate` and `baseline`, if there is one, each a list of runs by seed; `seeds`,
      `fold`, `steps`, `versions`, `device`, `lanes`, `text` (fingerprints) and `code` (that of
      this program).

    Raises:
      FolderError: if the text here is not the order's, or its code cannot be called.
    """
    site = local_site(
        order.config, console, steps=order.steps, most=len(order.arms) * len(order.seeds)
    )
    text = {"corpus": site.facts.corpus, "tokenizer": site.facts.tokenizer}
    if order.text not in (None, text):
        raise FolderError(
            f"config.data.corpus is {order.config.data.corpus!r}, whose text here has fingerprints "
            f"{text}; allowed: the text of the search, {order.text}"
        )
    for arm in order.arms.values():
        _require_callable(arm.code)
    with tempfile.TemporaryDirectory(prefix="nanoevolve-") as place:
        (Path(place) / "telemetry").mkdir()
        runs = Runs(Path(place), {MAIN: lambda: site.engine(site.config, MAIN)}, on_progress)
        bench = Bench(site.config, runs)
        jobs = [
            bench.job(arm, seed, order.fold, order.steps)
            for arm in order.arms.values()
            for seed in order.seeds
        ]
        made = [_as_json(run, runs.telemetry(run)) for run in runs.run(jobs, STAGE)]
    count = len(order.seeds)
    arms = {name: made[i * count : (i + 1) * count] for i, name in enumerate(order.arms)}
    return _result(order, site.facts, arms, text)


def _require_callable(code: Code | None) -> None:
    """Loads every program once, which checks its operations, arguments and results again.

    Raises:
      FolderError: if one cannot be called.
    """
    for function in code.functions if code else ():
        for key in function.certificate["programs"]:
            shape = SCALAR if key == shape_key(SCALAR) else tuple(map(int, key.split("x")))
            try:
                function.load(shape)
            except CertificateError as error:
                raise FolderError(str(error)) from None


def _as_json(run: Run, columns: dict[str, np.ndarray]) -> dict[str, Any]:
    """A run, its telemetry packed: float32[steps, 14]."""
    telemetry = np.stack([columns[name] for name in TELEMETRY], axis=1)
    return {field: getattr(run, field) for field in _FIELDS} | {"telemetry": reply.pack(telemetry)}


def _result(
    order: Order, facts: Facts, arms: dict[str, list[dict[str, Any]]], text: dict[str, str]
) -> dict[str, Any]:
    return finite_or_null(arms) | {
        "seeds": list(order.seeds),
        "fold": order.fold,
        "steps": order.steps,
        "versions": facts.versions,
        "device": facts.device,
        "lanes": facts.lanes,
        "text": text,
        "code": facts.code,
    }


def _placed(config: ConfigDict) -> ConfigDict:
    """The config with this machine's cache of prepared text."""
    placed = config.copy_and_resolve_references()
    placed.data.cache_dir = str(private_folder(user_cache()))
    return placed


class _Lines:
    """Progress as lines of a log, not too many of them."""

    def __init__(self, log: Callable[[str], None]):
        self._log, self._told = log, float("-inf")

    def __call__(self, progress: Progress) -> None:
        ended = progress.step == progress.steps
        if not ended and time.monotonic() - self._told < _QUIET_SECONDS:
            return
        self._told = time.monotonic()
        bpb = " ".join(f"{value:.4f}" for value in progress.val_bpb)
        self._log(f"step {progress.step} of {progress.steps}: {progress.jobs} runs, bpb {bpb}")


def main(arguments: list[str]) -> None:
    """Trains the folder of this process; its result is the last line that is printed."""
    (job,) = arguments
    order = read_folder(Path.cwd(), job)
    order = order._replace(config=_placed(order.config))
    log = streams.print_line
    found = train(order, Console(width=200, force_terminal=False), _Lines(log))
    log(reply.to_line({"job": job} | found))
