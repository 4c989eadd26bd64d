"""Specs in and out of JSON, with every mistake named in one line."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nanoevolve_jax.errors import UserError
from nanoevolve_jax.policy.spec import FIELDS, Field, OptimizerSpec, build_spec, get_field


class SpecError(UserError):
    """A spec that breaks the table; the message names the field, the value and the range."""


def allowed(field: Field) -> str:
    """What a field may hold, in words: 'off or on', 'an integer from 1 to 5'."""
    if field.choices:
        return " or ".join(field.choices)
    kind = "an integer" if field.integer else "a number"
    return f"{kind} from {field.low:g} to {field.high:g}"


def check_value(path: str, value: Any) -> float | int:
    """Returns the stored number for a JSON value, or raises `SpecError`."""
    field = FIELDS[path]
    problem = SpecError(f"spec.{path} is {value!r}; allowed: {allowed(field)}")
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
    """Builds a spec from a nested JSON object that names every field.

    Raises:
      SpecError: for an unknown, missing, wrongly typed, non-finite or out-of-bounds field.
    """
    if not isinstance(document, Mapping):
        raise SpecError(f"spec is {document!r}; allowed: a JSON object with the fields of a spec")
    flat = _flatten(document)
    for path in flat:
        if path not in FIELDS:
            raise SpecError(f"spec.{path} is unknown; allowed: {', '.join(FIELDS)}")
    for path, field in FIELDS.items():
        if path not in flat:
            raise SpecError(f"spec.{path} is missing; allowed: {allowed(field)}")
    return build_spec({path: check_value(path, flat[path]) for path in FIELDS})


def spec_to_json(spec: OptimizerSpec) -> dict[str, Any]:
    """The nested JSON object of a spec of concrete numbers, switches spelled as words."""
    document: dict[str, Any] = {}
    for path in FIELDS:
        *groups, name = path.split(".")
        node = document
        for group in groups:
            node = node.setdefault(group, {})
        node[name] = field_to_json(path, get_field(spec, path))
    return document


def field_to_json(path: str, value: Any) -> str | int | float:
    """The JSON form of one leaf."""
    field = FIELDS[path]
    if field.choices:
        return field.choices[int(value)]
    return int(value) if field.integer else float(value)


def load_spec(path: str | Path) -> OptimizerSpec:
    """Reads a spec from a JSON file; a record of an archive is read by its `spec`.

    Raises:
      SpecError: if the file is missing, is not JSON, holds an invalid spec, or code besides it.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise SpecError(f"spec file is {str(path)!r}; allowed: a JSON file ({reason})") from None
    if isinstance(document, Mapping) and isinstance(document.get("spec"), Mapping):
        if document.get("code"):
            raise SpecError(
                f"spec file is {str(path)!r}, whose functions are rewritten, which its spec alone "
                f"cannot say; allowed: DIR:ID, or its file of `export {document.get('id')} --to "
                "optax`"
            )
        document = document["spec"]
    try:
        return spec_from_json(document)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None
    except RecursionError:
        raise SpecError(f"{path}: spec is nested too deeply") from None
