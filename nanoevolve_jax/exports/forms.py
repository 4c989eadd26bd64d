"""Exports a policy in one of three forms and compares the file with the policy."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from nanoevolve_jax.errors import UserError, must
from nanoevolve_jax.execution.json_files import to_text
from nanoevolve_jax.exports.agreement import PARAMETERS, Agreement, Check, check_torch
from nanoevolve_jax.exports.origin import Origin, in_sentences, to_document
from nanoevolve_jax.exports.source import module_name, source_of
from nanoevolve_jax.policy.certified import Code
from nanoevolve_jax.policy.spec import OptimizerSpec
from nanoevolve_jax.policy.spec_json import spec_from_json


class Policy(NamedTuple):
    """A policy to export."""

    spec: OptimizerSpec
    origin: Origin
    source: str  # description of the place that it was read from
    code: Code | None = None


class Exported(NamedTuple):
    """Result of an export."""

    path: Path
    agrees: bool
    summary: str  # one line for the user


class Form(NamedTuple):
    """One form of export."""

    suffix: str  # end of the file name, after the id of the policy
    write: Callable[[Policy], str]  # function that returns the text of the file


def _source(framework: str) -> Callable[[Policy], str]:
    return lambda policy: source_of(
        policy.spec, framework, policy.origin.id, in_sentences(policy.origin), policy.code
    )


FORMS = {
    "optax": Form("_optax.py", _source("optax")),
    "torch": Form("_torch.py", _source("torch")),
    "json": Form(
        ".json", lambda policy: to_text(to_document(policy.spec, policy.origin, policy.code))
    ),
}


def export(
    policy: Policy, to: str, check_optax: Check, out: Path | None = None, force: bool = False
) -> Exported:
    """Writes a policy in one form and checks that the file agrees with it.

    Args:
      policy: Policy to export.
      to: Form of the file, a key of `FORMS`.
      check_optax: Function that compares a file for optax with the policy.
      out: File to write; by default it is named after the id.
      force: Whether to overwrite an existing file.

    Returns:
      The path of the file, whether it agrees with the policy, and a summary.

    Raises:
      UserError: If the form is unknown, or the file already exists or cannot be written.
    """
    if to not in FORMS:
        raise UserError(must("--to", f"be {', '.join(FORMS)}", to))
    form, name = FORMS[to], policy.origin.id
    out = out or Path(module_name(name) + form.suffix)
    if out.exists() and not force:
        raise UserError(f"{must('--out', 'be a new file', str(out))}; --force overwrites it")
    text = form.write(policy)
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        problem = must("--out", "be a file that can be written", str(out))
        raise UserError(f"{problem} ({error.strerror})") from None
    agrees, result = _compare(policy, to, out.read_text(encoding="utf-8"), check_optax)
    return Exported(out, agrees, f"{out}: {name} ({policy.source}) for {to}; {result}")


def _compare(policy: Policy, to: str, text: str, check_optax: Check) -> tuple[bool, str]:
    """Returns whether a file agrees with its policy, and a description of the result."""
    if to == "json":
        return _read_back(policy, text)
    try:
        if to == "optax":
            agreement = check_optax(policy.spec, text, policy.code)
        else:
            agreement = check_torch(policy.spec, text)
    except ImportError as error:
        return True, f"not checked because {error.name} is not installed"
    return agreement.passes, _summary(agreement)


def _summary(agreement: Agreement) -> str:
    verb = "agrees" if agreement.passes else "DISAGREES"
    counts = {
        "signs flipped by rounding": agreement.flips,
        "steps with the gate held within its rounding": agreement.held,
    }
    return ", ".join(
        [
            f"{verb} with the library's optimizer over {agreement.steps} steps",
            f"every matrix within {agreement.max_relative_l2:.1e} relative L2 "
            f"(limit {PARAMETERS:g})",
            *(f"{count} {what}" for what, count in counts.items() if count),
        ]
    )


def _read_back(policy: Policy, text: str) -> tuple[bool, str]:
    document = json.loads(text)
    same = spec_from_json(document["spec"]) == policy.spec
    sources = {slot: entry["source"] for slot, entry in document.get("code", {}).items()}
    functions = policy.code.functions if policy.code else ()
    if not same or sources != {function.slot: function.source for function in functions}:
        return False, "it READS BACK AS ANOTHER POLICY"
    if not sources:
        return True, "it reads back as the same spec"
    slots = " and ".join(sources)
    return True, f"it reads back as the same spec and source of {slots}; only optax files run code"
