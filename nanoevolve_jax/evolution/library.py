"""A store of certified code, with a folder for each certificate.

  code/<certificate id>/certificate.json  source.py  <shape key>.stablehlo

The id of a certificate is a hash of its content. When code is read, the id is checked against the
certificate, and the source and the programs are checked against the hashes in the certificate. A
hash is not a signature, so anyone with write access to the folder can store other code under
another id. `policy.certified` nevertheless refuses to load programs with operations that are not
permitted.
"""

import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from nanoevolve_jax.data.files import building, discard, publish
from nanoevolve_jax.errors import must
from nanoevolve_jax.execution.json_files import decode, to_text, typed
from nanoevolve_jax.execution.plain_files import FileError, read_plain
from nanoevolve_jax.policy.certified import CertificateError, Certified, Code
from nanoevolve_jax.policy.slots import SLOTS

FOLDER = "code"  # subfolder of the run folder
CERTIFICATE, SOURCE, PROGRAM = "certificate.json", "source.py", ".stablehlo"
MOST_BYTES = 256 << 20  # maximum size of a file
_ID = re.compile(r"[0-9a-f]{16}")


class Library:
    """Certified code in a folder that several processes may read and write concurrently."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    def put(self, function: Certified) -> Path:
        """Stores a function atomically, unless it is stored already.

        Args:
          function: Function to store.

        Returns:
          Folder of the function.

        Raises:
          CertificateError: If the function does not match its certificate.
        """
        function.require_intact()
        target = self.folder / function.id
        if target.exists() or target.is_symlink():
            try:
                self.get(function.id)
                return target
            except CertificateError:
                discard(target)
        with building(self.folder, function.id) as folder:
            (folder / CERTIFICATE).write_text(to_text(dict(function.certificate)))
            (folder / SOURCE).write_text(function.source, encoding="utf-8", newline="")
            for key in function.certificate["programs"]:
                (folder / f"{key}{PROGRAM}").write_bytes(function.programs[key])
            publish(folder, target)
        return target

    def get(self, id: str) -> Certified:
        """Returns a stored function.

        Args:
          id: Id of its certificate.

        Raises:
          CertificateError: If the function is missing, or its folder was changed.
        """
        if not isinstance(id, str) or not _ID.fullmatch(id):
            raise CertificateError(must("certificate", "be 16 hexadecimal digits", str(id)[:40]))
        folder = self.folder / id
        contents = _contents(folder)
        certificate = _certificate(folder, contents)
        programs = certificate["programs"]
        wanted = {CERTIFICATE, SOURCE, *(f"{key}{PROGRAM}" for key in programs)}
        for name in sorted(wanted ^ contents.keys()):
            what = "is missing" if name in wanted else "does not belong to the certificate"
            raise CertificateError(f"{folder / name} {what}")
        try:
            source = contents[SOURCE].decode()
            function = Certified(
                source, certificate, {key: contents[f"{key}{PROGRAM}"] for key in programs}
            )
        except ValueError as error:  # not UTF-8, or a number that JSON cannot represent
            raise CertificateError(f"{folder} cannot be read: {error}") from None
        if function.id != id:
            raise CertificateError(
                f"{folder / CERTIFICATE} was changed: it is certificate {function.id}, not {id}"
            )
        function.require_intact()
        return function

    def all(self) -> Iterator[Certified]:
        """Yields all functions, ordered by id.

        Raises:
          CertificateError: If a folder was changed.
        """
        if self.folder.is_dir():
            for path in sorted(self.folder.iterdir()):
                if not path.name.startswith("."):
                    yield self.get(path.name)

    def code(self, ids: Mapping[str, str] | None) -> Code | None:
        """Returns the rewritten functions of a record.

        Args:
          ids: Certificate ids by slot.

        Returns:
          The functions, or None if there are no ids.

        Raises:
          CertificateError: If a function is missing or damaged, or belongs to another slot.
        """
        if not ids:
            return None
        functions = []
        for slot in sorted(ids):
            function = self.get(ids[slot])
            if function.slot != slot:
                raise CertificateError(
                    f"certificate {function.id} must be for slot {slot!r}, as its record says, got "
                    f"{function.slot!r}"
                )
            functions.append(function)
        return Code(tuple(functions))


def _contents(folder: Path) -> dict[str, bytes]:
    """Returns the contents of the files of a folder, all of which must be regular files."""
    try:
        if not stat.S_ISDIR(os.lstat(folder).st_mode):
            raise CertificateError(f"{folder} must be a folder of certified code")
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        raise CertificateError(f"{folder.parent} has no certificate {folder.name}") from None
    return {name: _plain(folder / name) for name in names}


def _plain(path: Path) -> bytes:
    try:
        return read_plain(path, MOST_BYTES, follow=False)
    except (FileError, OSError) as error:
        raise CertificateError(str(error)) from None


class _Program(TypedDict):
    sha256: str
    flops: float
    baseline_flops: float


class Certificate(TypedDict):
    """The fields of a certificate that are read."""

    slot: Literal[tuple(SLOTS)]
    source_sha256: str
    computation: str
    programs: dict[str, _Program]
    checks: NotRequired[list[str]]
    isolation: NotRequired[str]


def _certificate(folder: Path, contents: Mapping[str, bytes]) -> dict:
    """Returns the certificate of a folder after checking the types of its fields."""
    try:
        return typed(decode(contents.get(CERTIFICATE, b"")), Certificate)
    except ValueError as error:
        raise CertificateError(
            f"{folder / CERTIFICATE} is missing or not a certificate: {error}"
        ) from None


def code_of(folder: Path, document: Mapping[str, Any] | None) -> Code | None:
    """Returns the rewritten functions of a record in a run folder.

    Args:
      folder: Run folder.
      document: Field `code` of the record, or None.

    Returns:
      The functions, or None if the record has only built-in ones.

    Raises:
      CertificateError: If a function is missing or damaged, or belongs to another slot.
    """
    return Library(folder / FOLDER).code(document and document["certificates"])
