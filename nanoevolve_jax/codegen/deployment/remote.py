"""Runs a job on the cluster: checks its folder, trains its runs and prints the result.

  cd FOLDER && python -B -m nanoevolve_jax.codegen.deployment.remote JOB

JOB is the id of the job. The process does not use Ray. It reads the folder and a cache of prepared
text, which is the folder `nanoevolve` in XDG_CACHE_HOME or ~/.cache. Only `execution.intact` and
its dependencies are imported before every file has been checked.
"""

import itertools
import sys
import time
from pathlib import Path
from typing import Any

from nanoevolve_jax.execution.intact import FolderError, read_intact

_BAD_INPUT = 2
_QUIET_SECONDS = 2.0  # shortest time between two lines of progress


def train(submission: Any, console: Any, on_progress: Any = lambda progress: None) -> dict:
    """Trains all runs of a submission on this machine and returns the result as JSON.

    Args:
      submission: Training runs and their config, a `folder.Submission`.
      console: Console that shows the progress of preparing the corpus.
      on_progress: Callback that takes the progress of the runs.

    Raises:
      FolderError: If the corpus or the tokenizer on this machine differs from that of the sender.
    """
    from nanoevolve_jax.evidence.work import MAIN
    from nanoevolve_jax.execution.results import result_to_json
    from nanoevolve_jax.site import local_site

    jobs = [job for runs in submission.arms.values() for job in runs]
    steps = max(job.steps for job in jobs)
    site = local_site(submission.config, console, steps=steps, most=len(jobs))
    text = {"corpus": site.facts.corpus, "tokenizer": site.facts.tokenizer}
    if submission.text not in (None, text):
        raise FolderError(f"fingerprints of the text must be {submission.text}, got {text}")
    results = map(result_to_json, site.engine(site.config, MAIN).run(jobs, on_progress))
    arms = {arm: list(itertools.islice(results, len(own))) for arm, own in submission.arms.items()}
    facts = {name: getattr(site.facts, name) for name in ("versions", "device", "lanes", "code")}
    seeds = [job.seed for job in submission.arms["candidate"]]
    return arms | facts | {"seeds": seeds, "fold": jobs[0].fold, "steps": steps, "text": text}


def main(arguments: list[str]) -> None:
    """Trains the runs of the working directory and prints the result as the last line.

    Args:
      arguments: Command-line arguments: the id of the job.

    Raises:
      FolderError: If the working directory is not the intact folder of the job, or if the corpus on
        this machine differs from that of the sender.
    """
    from nanoevolve_jax.codegen.deployment import folder, registry
    from nanoevolve_jax.execution.machine import private_folder, user_cache
    from nanoevolve_jax.terminal.console import Console
    from nanoevolve_jax.terminal.streams import print_line

    (job,) = arguments
    submission = folder.read_folder(Path.cwd(), job)
    submission.config.data.cache_dir = str(private_folder(user_cache()))
    printed = float("-inf")

    def on_progress(progress: Any) -> None:
        nonlocal printed
        if progress.step == progress.steps or time.monotonic() - printed >= _QUIET_SECONDS:
            printed = time.monotonic()
            bpb = " ".join(f"{value:.4f}" for value in progress.val_bpb)
            print_line(f"step {progress.step} of {progress.steps}: {progress.jobs} runs, bpb {bpb}")

    result = train(submission, Console(width=200, force_terminal=False), on_progress)
    print_line(registry.to_line({"job": job} | result))


if __name__ == "__main__":
    try:
        if len(sys.argv) != 2:
            raise FolderError(f"arguments must be the id of one job, got {sys.argv[1:]}")
        read_intact(Path.cwd(), sys.argv[1])
    except FolderError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(_BAD_INPUT)
    print(f"{sys.argv[1]}: the folder is as it was sent", flush=True)
    from nanoevolve_jax import command

    command.run_on_arguments(main)
