"""Specs as JSON. Every error message is a single line that names the field."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nanoevolve_jax.errors import UserError, must
from nanoevolve_jax.policy.spec import FIELDS, Field, OptimizerSpec, build_spec, get_field


class SpecError(UserError):
    """An error in a spec. The message names the field, the rule and the value."""


def range_of(field: Field) -> str:
    """Describes the range of a field, such as 'off or on' or 'an integer from 1 to 5'."""
    if field.choices:
        return " or ".join(field.choices)
    kind = "an integer" if field.integer else "a number"
    return f"{kind} from {field.low:g} to {field.high:g}"


def check_value(path: str, value: Any) -> float | int:
    """Converts a JSON value to the number that a spec contains.

    Args:
      path: Path of the field, a key of `FIELDS`.
      value: JSON value of the field.

    Returns:
      The number, or the index of the choice for a switch.

    Raises:
      SpecError: If the value has the wrong type or is out of range.
    """
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
    """Returns the spec of a JSON object.

    Args:
      document: Nested JSON object that contains every field of a spec.

    Returns:
      The spec, with concrete numbers within their bounds.

    Raises:
      SpecError: If a field is unknown, missing, not finite, out of bounds or of the wrong type.
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
    """Returns a spec as a nested JSON object with words for switches.

    Args:
      spec: Policy of concrete numbers.

    Returns:
      The JSON object, see `spec_from_json`.
    """
    document: dict[str, Any] = {}
    for path in FIELDS:
        *groups, name = path.split(".")
        node = document
        for group in groups:
            node = node.setdefault(group, {})
        node[name] = field_to_json(path, get_field(spec, path))
    return document


def field_to_json(path: str, value: Any) -> str | int | float:
    """Returns the JSON value of a leaf.

    Args:
      path: Path of the field, a key of `FIELDS`.
      value: Concrete number in the spec.

    Returns:
      The number, or the word for a switch.
    """
    field = FIELDS[path]
    if field.choices:
        return field.choices[int(value)]
    return int(value) if field.integer else float(value)


def load_spec(path: str | Path) -> OptimizerSpec:
    """Reads a spec from a JSON file.

    Args:
      path: Path of a file that contains a spec, a record of an archive or an export.

    Returns:
      The spec, with concrete numbers within their bounds.

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
