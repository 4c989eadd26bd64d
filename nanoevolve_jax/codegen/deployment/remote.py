"""Runs a job on the cluster: checks its folder, trains it and prints its result.

  cd FOLDER && python -B -m nanoevolve_jax.codegen.deployment.remote JOB

JOB is the id that the folder was submitted under. The result is one marked line on the standard
output, see `result.py`. The process needs no Ray. It reads the folder and a cache of prepared text,
`nanoevolve` in XDG_CACHE_HOME or ~/.cache.
"""

import itertools
import sys
import time
from pathlib import Path
from typing import Any

from nanoevolve_jax.codegen.deployment.intact import FolderError, read_intact

BAD_INPUT = 2
_QUIET_SECONDS = 2.0  # least time between lines of progress


def train(submission: Any, console: Any, on_progress: Any = lambda progress: None) -> dict:
    """Trains all runs of a submission on this machine and returns the result as JSON.

    Args:
      submission: `folder.Submission`.
      console: `Console` for the progress of the text.
      on_progress: Callback that takes the `Progress` of running jobs.

    Raises:
      FolderError: If the text on this machine is not the one that the sender expects.
    """
    from nanoevolve_jax.codegen.deployment.result import run_to_json
    from nanoevolve_jax.evidence.work import MAIN
    from nanoevolve_jax.site import local_site

    jobs = [job for runs in submission.arms.values() for job in runs]
    steps = max(job.steps for job in jobs)
    site = local_site(submission.config, console, steps=steps, most=len(jobs))
    facts = site.facts
    text = {"corpus": facts.corpus, "tokenizer": facts.tokenizer}
    if submission.text not in (None, text):
        raise FolderError(
            f"text of config.data.corpus must have fingerprints {submission.text}, got {text}"
        )
    engine = site.engine(site.config, MAIN)
    runs = (run_to_json(*pair) for pair in zip(jobs, engine.run(jobs, on_progress), strict=True))
    batch = int(engine.task.batch_tokens)
    arms = {}
    for arm, own in submission.arms.items():
        arms[arm] = [run | {"tokens": batch * run["trained"]} for run in itertools.islice(runs, len(own))]
    return arms
