"""What an archive says of rewritten functions, compared with the certified code in the library."""

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from nanoevolve_jax.codegen.validation import language
from nanoevolve_jax.evolution.archive import ArchiveError, Record
from nanoevolve_jax.evolution.library import FOLDER, Library
from nanoevolve_jax.policy.certified import CertificateError, Certified, digest
from nanoevolve_jax.policy.slots import built_in_source


def require_vouched(folder: Path, records: Sequence[Record]) -> None:
    """Checks the code of every record: certificates, computations, source and diff.

    Args:
      folder: Run folder, whose library holds the code.
      records: Records of its archive, in order.

    Raises:
      CertificateError: if certified code is missing or damaged.
      ArchiveError: if a record says something else than the certified code, naming the record.
    """
    library, functions = Library(folder / FOLDER), {}
    by_id = {record.id: record for record in records}

    def find(name: str) -> Certified:
        if name not in functions:
            functions[name] = library.get(name)
            _require_short(functions[name])
        return functions[name]

    for record in records:
        if record.code is not None:
            try:
                _require_code(record, by_id.get(record.parent_id), find)
            except ValueError as error:
                if type(error) is not ValueError:
                    raise
                raise ArchiveError(f"archive record {record.id!r}: {error}") from None


def _require_short(function: Certified) -> None:
    """Refuses a source that no campaign certifies, whose differences could take hours to find."""
    if len(function.source) > language.MAX_SOURCE_BYTES:
        raise CertificateError(
            f"the source of certificate {function.id} must have at most "
            f"{language.MAX_SOURCE_BYTES:,} bytes, got {len(function.source):,}"
        )


def _require_code(record: Record, parent: Record | None, find) -> None:
    code = record.code
    before: Mapping[str, str] = parent.code["certificates"] if parent and parent.code else {}
    if set(code["certificates"]) != set(code["computation"]):
        raise ValueError("code.computation must have the slots of code.certificates")
    for slot, name in code["certificates"].items():
        function = find(name)
        if (function.slot, function.computation) != (slot, code["computation"][slot]):
            raise ValueError(f"code.computation.{slot} must be that of certificate {name}")
        if slot != code["slot"] and before.get(slot) != name:
            raise ValueError(f"code.certificates.{slot} must be its parent's, got {name}")
    if code["slot"] is None:
        if code["certificates"] != before:
            raise ValueError("code.certificates must be its parent's")
        return
    text = json.dumps(code["certificate"], sort_keys=True, allow_nan=False)
    function = find(digest(text.encode())[:16])
    if code["slot"] != function.slot or code["certificates"].get(function.slot) not in (
        None,  # it computes what the built-in function does, and so is the built-in one again
        function.id,
    ):
        raise ValueError(f"code.slot must be that of its certificate, {function.slot!r}")
    if code["source"] != function.source:
        raise ValueError(f"code.source must be that of certificate {function.id}")
    slot = function.slot
    old = find(before[slot]).source if slot in before else built_in_source(slot)
    if code["diff"] != unified_diff(old, function):
        raise ValueError("code.diff must be the difference from its parent's source")


def unified_diff(before: str, function: Certified) -> str:
    """The difference of a function's source from its parent's, as records keep it."""
    lines = (text.splitlines() for text in (before, function.source))
    return "\n".join(difflib.unified_diff(*lines, "parent", "child", lineterm=""))
