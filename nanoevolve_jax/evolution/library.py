"""The store of certified code: one folder a certificate, named by the hash of what is in it.

  code/<certificate id>/certificate.json  source.py  <shape key>.stablehlo

What is read is checked: the id against the certificate, source and programs against the hashes in
it. A hash is no signature. Who may write to the folder can put other code under another id; that
code is still held to a program's allowed operations when it is loaded (`policy.certified`).
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

FOLDER = "code"  # of a run folder
CERTIFICATE, SOURCE, PROGRAM = "certificate.json", "source.py", ".stablehlo"
MOST_BYTES = 256 << 20  # of one file
_ID = re.compile(r"[0-9a-f]{16}")


class Library:
    """Certified code under a folder; any number of processes may read and write it."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    def put(self, function: Certified) -> Path:
        """Stores a function whole or not at all, and gives its folder; again: does nothing.

        Raises:
          CertificateError: if it is not what its certificate says.
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
        """The function of a certificate.

        Raises:
          CertificateError: if there is none, or anything in its folder is not as it was written.
        """
        if not isinstance(id, str) or not _ID.fullmatch(id):
            raise CertificateError(must("certificate", "be 16 hexadecimal digits", str(id)[:40]))
        folder = self.folder / id
        contents = _contents(folder)
        certificate = _certificate(folder, contents)
        programs = certificate["programs"]
        wanted = {CERTIFICATE, SOURCE, *(f"{key}{PROGRAM}" for key in programs)}
        for name in sorted(wanted ^ contents.keys()):
            what = "is missing" if name in wanted else "is no part of a certificate's folder"
            raise CertificateError(f"{folder / name} {what}")
        try:
            source = contents[SOURCE].decode()
            found = Certified(
                source, certificate, {key: contents[f"{key}{PROGRAM}"] for key in programs}
            )
        except ValueError as error:  # no UTF-8, or a number that JSON has no word for
            raise CertificateError(f"{folder} cannot be read: {error}") from None
        if found.id != id:
            raise CertificateError(
                f"{folder / CERTIFICATE} was changed: it is certificate {found.id}, not {id}"
            )
        found.require_intact()
        return found

    def all(self) -> Iterator[Certified]:
        """All functions, ordered by id.

        Raises:
          CertificateError: at the first that is not as it was written.
        """
        if self.folder.is_dir():
            for path in sorted(self.folder.iterdir()):
                if not path.name.startswith("."):
                    yield self.get(path.name)

    def code(self, ids: Mapping[str, str] | None) -> Code | None:
        """The functions of a record, {slot: certificate id}; None where nothing is rewritten.

        Raises:
          CertificateError: if one is missing, damaged, or of another slot.
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
    """The plain files of a folder; links, folders and devices are refused, not followed."""
    try:
        if not stat.S_ISDIR(os.lstat(folder).st_mode):
            raise CertificateError(f"{folder} must be a folder of certified code")
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        raise CertificateError(f"{folder.parent} holds no certificate {folder.name}") from None
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
    """The form of a certificate, as far as it is read."""

    slot: Literal[tuple(SLOTS)]
    source_sha256: str
    computation: str
    programs: dict[str, _Program]
    checks: NotRequired[list[str]]
    isolation: NotRequired[str]


def _certificate(folder: Path, contents: Mapping[str, bytes]) -> dict:
    """The certificate of a folder, of the form that everything else relies on."""
    try:
        return typed(decode(contents.get(CERTIFICATE, b"")), Certificate)
    except ValueError as error:
        raise CertificateError(
            f"{folder / CERTIFICATE} is missing or no certificate: {error}"
        ) from None


def code_of(folder: Path, document: Mapping[str, Any] | None) -> Code | None:
    """The code that a record of a run folder names; None where nothing is rewritten.

    Raises:
      CertificateError: if it is missing, damaged or exchanged.
    """
    return Library(folder / FOLDER).code(document and document["certificates"])
