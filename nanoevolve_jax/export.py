"""Writes a policy as a file that needs nothing of this project, and checks that it agrees.

  python -m nanoevolve_jax.export g002c06 --to optax --workdir=runs/mine
  python -m nanoevolve_jax.export annealing --to torch --out annealing.py

The first argument is an id of the run folder, a preset, or a JSON file with a spec or a record.
Rewritten functions go with it as sources, to optax and JSON.
"""

import difflib
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from absl import flags

from nanoevolve_jax import command, plugins
from nanoevolve_jax.evolution.archive import ArchiveError
from nanoevolve_jax.evolution.campaign import ARCHIVE
from nanoevolve_jax.evolution.library import code_of
from nanoevolve_jax.execution.json_files import to_text
from nanoevolve_jax.execution.settings import ConfigError
from nanoevolve_jax.exports import agreement
from nanoevolve_jax.exports.agreement import Agreement
from nanoevolve_jax.exports.origin import Origin, in_sentences, origin_from_file, to_document
from nanoevolve_jax.exports.source import module_name, source_of
from nanoevolve_jax.policy.certified import Code
from nanoevolve_jax.policy.spec import PRESETS, OptimizerSpec
from nanoevolve_jax.policy.spec_json import load_spec, spec_from_json
from nanoevolve_jax.reporting.history import read_history
from nanoevolve_jax.reporting.policies import origin_of
from nanoevolve_jax.terminal import streams

DISAGREES = 1


class Policy(NamedTuple):
    """What is exported."""

    spec: OptimizerSpec
    origin: Origin
    where: str  # it was found
    code: Code | None = None


class Form(NamedTuple):
    """One form of export."""

    ending: str  # of the file's name, behind the id
    write: Callable[[Policy], str]
    check: Callable[[Policy, str, str], Agreement] | None  # policy, text, isolation of the jail


def _file(framework: str) -> Callable[[Policy], str]:
    return lambda policy: source_of(
        policy.spec, framework, policy.origin.id, in_sentences(policy.origin), policy.code
    )


FORMS = {
    "optax": Form(
        "_optax.py",
        _file("optax"),
        lambda policy, text, isolation: plugins.export_check(policy.code, isolation)(
            policy.spec, text, policy.code
        ),
    ),
    "torch": Form(
        "_torch.py",
        _file("torch"),
        lambda policy, text, isolation: agreement.check_torch(policy.spec, text),
    ),
    "json": Form(
        ".json",
        lambda policy: to_text(to_document(policy.spec, policy.origin, policy.code)),
        None,
    ),
}


def find(name: str, folder: Path) -> Policy:
    """The policy of a name: of a JSON file, of the folder's archive, or a preset.

    Raises:
      SpecError: if the file holds no valid spec.
      ArchiveError: if nothing has that name.
      CertificateError: if its code is missing or was changed.
    """
    path = Path(name)
    if path.is_file() or path.suffix == ".json":
        return Policy(load_spec(path), origin_from_file(path), name)
    try:
        history = read_history(folder)
    except ArchiveError:
        if name not in PRESETS:
            raise
        return _preset(name)
    found = next((record for record in history.records if record.id == name), None)
    if found is not None:
        code = code_of(history.folder, found.code)
        plugins.require_exportable(code)
        return Policy(found.spec, origin_of(history, found), str(folder), code)
    if name in PRESETS:
        return _preset(name)
    ids = [record.id for record in history.records]
    near = difflib.get_close_matches(name, [*ids, *PRESETS]) or [history.best.id, *PRESETS]
    raise ArchiveError(
        f"ID is {name!r}; allowed: a JSON file, a preset, or an id of {folder / ARCHIVE}, such as "
        f"{', '.join(near)}"
    )


def _preset(name: str) -> Policy:
    return Policy(PRESETS[name], Origin(name, f"the preset {name}"), "a preset")


def _read_back(policy: Policy, out: Path) -> tuple[bool, str]:
    """Whether a JSON file says what it was written from."""
    document = json.loads(out.read_text(encoding="utf-8"))
    same = spec_from_json(document["spec"]) == policy.spec
    if policy.code is None:
        return same, "it reads back as the same spec" if same else "it READS BACK AS ANOTHER SPEC"
    sources = {slot: one["source"] for slot, one in document["code"].items()}
    same = same and sources == {f.slot: f.source for f in policy.code.functions}
    words = " and ".join(sources)
    return same, (
        f"it reads back as the same spec and source of {words}, which only a file for optax runs"
        if same
        else "it READS BACK AS ANOTHER POLICY"
    )


def _check(form: Form, policy: Policy, out: Path, isolation: str) -> tuple[bool, str]:
    """Whether what was written agrees with our own optimizer, and by how much."""
    if form.check is None:
        return _read_back(policy, out)
    try:
        found = form.check(policy, out.read_text(encoding="utf-8"), isolation)
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


def export(
    name: str,
    to: str,
    folder: Path,
    out: Path | None,
    force: bool,
    isolation: str = plugins.REQUIRED,
) -> bool:
    """Writes a policy in one form and says whether it agrees with ours.

    Args:
      name: Id of the run folder, preset, or JSON file.
      to: One of `FORMS`.
      folder: Run folder.
      out: File to write; by default named after the id.
      force: Whether to write over a file that exists.
      isolation: Walls of the jail in which a file with rewritten functions is tried.

    Raises:
      ConfigError: if the file is there already, or cannot be written.
    """
    form = FORMS[to]
    policy = find(name, folder)
    origin = policy.origin
    out = out or Path(module_name(origin.id) + form.ending)
    if out.exists() and not force:
        raise ConfigError(f"--out is {str(out)!r}, which exists; allowed: a new file, or --force")
    text = form.write(policy)
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"--out is {str(out)!r}; allowed: a file that can be written ({error.strerror})"
        ) from None
    agrees, how = _check(form, policy, out, isolation)
    streams.print_line(f"{out}: {origin.id} ({policy.where}) for {to}; {how}")
    return agrees


def main(arguments: list[str]) -> int:
    """The command; gives the exit code."""
    if len(arguments) != 1:
        command.fail(f"{len(arguments)} arguments; allowed: one ID, preset or JSON file")
    given = flags.FLAGS
    if given.to not in FORMS:
        command.fail(f"--to is {given.to!r}; allowed: {', '.join(FORMS)}")
    out = Path(given.out) if given.out else None
    folder = Path(given.workdir)
    agrees = export(arguments[0], given.to, folder, out, given.force, given.isolation)
    return 0 if agrees else DISAGREES


if __name__ == "__main__":  # flags of such common names would clash in who only imports this
    flags.DEFINE_string("to", None, "optax, torch or json")
    flags.DEFINE_string("workdir", "runs/screen", "run folder whose archive has the id")
    flags.DEFINE_string("out", None, "file to write; by default the id in this folder")
    flags.DEFINE_bool("force", False, "write over a file that is already there")
    flags.DEFINE_enum(
        *("isolation", plugins.REQUIRED, [plugins.REQUIRED, plugins.AVAILABLE]),
        "walls of the jail that tries rewritten functions; available: those of this machine",
    )
    command.run_on_arguments(main)
