"""Writes a policy as a file that needs nothing of this project, and checks that it agrees.

  python -m nanoevolve_jax.export g002c06 --to optax --workdir=runs/mine
  python -m nanoevolve_jax.export annealing --to torch --out annealing.py

The first argument is an id of the run folder, a preset, or a JSON file with a spec or a record.
"""

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from absl import flags

from nanoevolve_jax import command
from nanoevolve_jax.evolution.archive import ArchiveError
from nanoevolve_jax.evolution.campaign import ARCHIVE
from nanoevolve_jax.execution.json_files import to_text
from nanoevolve_jax.execution.settings import ConfigError
from nanoevolve_jax.exports import agreement
from nanoevolve_jax.exports.agreement import Agreement
from nanoevolve_jax.exports.origin import Origin, in_sentences, origin_from_file, to_document
from nanoevolve_jax.exports.source import module_name, source_of
from nanoevolve_jax.policy.spec import PRESETS, OptimizerSpec
from nanoevolve_jax.policy.spec_json import load_spec
from nanoevolve_jax.reporting.history import read_history
from nanoevolve_jax.reporting.origins import origin_of

DISAGREES = 1


class Form(NamedTuple):
    """One form of export."""

    ending: str  # of the file's name, behind the id
    write: Callable[[OptimizerSpec, Origin], str]
    check: Callable[[OptimizerSpec, str], Agreement] | None


def _code(framework: str) -> Callable[[OptimizerSpec, Origin], str]:
    return lambda spec, origin: source_of(spec, framework, origin.id, in_sentences(origin))


FORMS = {
    "optax": Form("_optax.py", _code("optax"), agreement.check_optax),
    "torch": Form("_torch.py", _code("torch"), agreement.check_torch),
    "json": Form(".json", lambda spec, origin: to_text(to_document(spec, origin)), None),
}


def find(name: str, folder: Path) -> tuple[OptimizerSpec, Origin, str]:
    """The policy of a name, and where it was found: a JSON file, the folder's archive, a preset.

    Raises:
      SpecError: if the file holds no valid spec.
      ArchiveError: if nothing has that name.
    """
    path = Path(name)
    if path.is_file() or path.suffix == ".json":
        return load_spec(path), origin_from_file(path), name
    try:
        history = read_history(folder)
    except ArchiveError:
        if name not in PRESETS:
            raise
        return *_preset(name), "a preset"
    found = next((record for record in history.records if record.id == name), None)
    if found is not None:
        return found.spec, origin_of(history, found), str(folder)
    if name in PRESETS:
        return *_preset(name), "a preset"
    ids = [record.id for record in history.records]
    near = difflib.get_close_matches(name, [*ids, *PRESETS]) or [history.best.id, *PRESETS]
    raise ArchiveError(
        f"ID is {name!r}; allowed: a JSON file, a preset, or an id of {folder / ARCHIVE}, such as "
        f"{', '.join(near)}"
    )


def _preset(name: str) -> tuple[OptimizerSpec, Origin]:
    return PRESETS[name], Origin(name, f"the preset {name}")


def _check(form: Form, spec: OptimizerSpec, out: Path) -> tuple[bool, str]:
    """Whether what was written agrees with our own optimizer, and by how much."""
    if form.check is None:
        same = load_spec(out) == spec
        return same, "it reads back as the same spec" if same else "it READS BACK AS ANOTHER SPEC"
    try:
        found = form.check(spec, out.read_text(encoding="utf-8"))
    except ImportError as error:
        return True, f"not checked, for {error.name} is not installed"
    rounding = {
        "signs flipped by rounding": found.flips,
        "steps with the gate held within its rounding": found.held,
    }
    return found.passes, ", ".join(
        [
            f"{'agrees' if found.passes else 'DISAGREES'} with our optimizer over {found.steps} "
            f"steps, every matrix within {found.max_relative_l2:.1e} relative L2 "
            f"(limit {agreement.PARAMETERS:g})",
            *(f"{count} {what}" for what, count in rounding.items() if count),
        ]
    )


def export(name: str, to: str, folder: Path, out: Path | None, force: bool) -> bool:
    """Writes a policy in one form and says whether it agrees with ours.

    Raises:
      ConfigError: if the file is there already, or cannot be written.
    """
    form = FORMS[to]
    spec, origin, where = find(name, folder)
    out = out or Path(module_name(origin.id) + form.ending)
    if out.exists() and not force:
        raise ConfigError(f"--out is {str(out)!r}, which exists; allowed: a new file, or --force")
    text = form.write(spec, origin)
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"--out is {str(out)!r}; allowed: a file that can be written ({error.strerror})"
        ) from None
    agrees, how = _check(form, spec, out)
    print(f"{out}: {origin.id} ({where}) for {to}; {how}")
    return agrees


def main(arguments: list[str]) -> int:
    """The command; gives the exit code."""
    if len(arguments) != 1:
        command.fail(f"{len(arguments)} arguments; allowed: one ID, preset or JSON file")
    given = flags.FLAGS
    if given.to not in FORMS:
        command.fail(f"--to is {given.to!r}; allowed: {', '.join(FORMS)}")
    out = Path(given.out) if given.out else None
    agrees = export(arguments[0], given.to, Path(given.workdir), out, given.force)
    return 0 if agrees else DISAGREES


if __name__ == "__main__":  # flags of such common names would clash in who only imports this
    flags.DEFINE_string("to", None, "optax, torch or json")
    flags.DEFINE_string("workdir", "runs/screen", "run folder whose archive has the id")
    flags.DEFINE_string("out", None, "file to write; by default the id in this folder")
    flags.DEFINE_bool("force", False, "write over a file that is already there")
    command.run_on_arguments(main)
