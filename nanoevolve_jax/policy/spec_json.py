"""Reads and writes specs as JSON. Every error is one line that names the field."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nanoevolve_jax.errors import UserError, must
from nanoevolve_jax.policy.spec import FIELDS, Field, OptimizerSpec, build_spec, get_field


class SpecError(UserError):
    """A spec that breaks a rule; the message names the field, the rule and the value."""


def range_of(field: Field) -> str:
    """Returns the range of a field in words: 'off or on', 'an integer from 1 to 5'."""
    if field.choices:
        return " or ".join(field.choices)
    kind = "an integer" if field.integer else "a number"
    return f"{kind} from {field.low:g} to {field.high:g}"


def check_value(path: str, value: Any) -> float | int:
    """Returns the stored number for a JSON value, or raises `SpecError`."""
    field = FIELDS[path]
    problem = SpecError(must(f"spec.{path}", f"be {range_of(field)}", value))
    if field.choices:
        if not isinstance(value, str) or value not in field.choices:
            raise problem
        return field.choices.index(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise problem
    if not math.isfinite(value) or not field.low <= value <= field.high:
        raise problem
    if field.integer and value != int(value):
        raise problem
    return int(value) if field.integer else float(value)


def _flatten(node: Mapping, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in node.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping) and path not in FIELDS:
            flat |= _flatten(value, f"{path}.")
        else:
            flat[path] = value
    return flat


def spec_from_json(document: Any) -> OptimizerSpec:
    """Returns the spec of a nested JSON object that contains every field.

    Raises:
      SpecError: If a field is unknown, missing, not finite, out of bounds or of a wrong type.
    """
    if not isinstance(document, Mapping):
        raise SpecError(must("spec", "be a JSON object with the fields of a spec", document))
    flat = _flatten(document)
    for path in flat:
        if path not in FIELDS:
            raise SpecError(f"spec.{path} is unknown; the fields are {', '.join(FIELDS)}")
    for path, field in FIELDS.items():
        if path not in flat:
            raise SpecError(f"spec.{path} is missing; it must be {range_of(field)}")
    return build_spec({path: check_value(path, flat[path]) for path in FIELDS})


def spec_to_json(spec: OptimizerSpec) -> dict[str, Any]:
    """Returns a spec of concrete numbers as a nested JSON object, with switches as words."""
    document: dict[str, Any] = {}
    for path in FIELDS:
        *groups, name = path.split(".")
        node = document
        for group in groups:
            node = node.setdefault(group, {})
        node[name] = field_to_json(path, get_field(spec, path))
    return document


def field_to_json(path: str, value: Any) -> str | int | float:
    """Returns the JSON form of one leaf."""
    field = FIELDS[path]
    if field.choices:
        return field.choices[int(value)]
    return int(value) if field.integer else float(value)


def load_spec(path: str | Path) -> OptimizerSpec:
    """Reads a spec from a JSON file with a spec, a record of an archive or an export.

    Args:
      path: Path of the file.

    Returns:
      The spec, an `OptimizerSpec` of concrete numbers within their bounds.

    Raises:
      SpecError: If the file is missing, is not JSON, or contains an invalid spec or code.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise SpecError(f"{must('spec file', 'be a JSON file', str(path))} ({reason})") from None
    if isinstance(document, Mapping) and isinstance(document.get("spec"), Mapping):
        if document.get("code"):
            raise SpecError(
                f"{path} has a spec whose functions are rewritten; name it as DIR:ID, or use the "
                f"file of `export {document.get('id')} --to optax`"
            )
        document = document["spec"]
    try:
        return spec_from_json(document)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None
    except RecursionError:
        raise SpecError(f"{path}: spec is nested too deeply") from None
