"""Certified code of a run folder: `code/<certificate id>/`, one folder a function."""

import json
from pathlib import Path
from typing import Any

from nanoevolve_jax.policy.certified import Certified, Code, code_from_json

FOLDER = "code"


class Library:
    """The certified code under a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def get(self, name: str) -> Certified:
        """The code of a certificate's id."""
        place = self.folder / name
        certificate = json.loads((place / "certificate.json").read_text(encoding="utf-8"))
        programs = {k: (place / f"{k}.stablehlo").read_bytes() for k in certificate["programs"]}
        return Certified((place / "source.py").read_text(encoding="utf-8"), certificate, programs)


def code_of(folder: Path, document: dict[str, Any] | None) -> Code | None:
    """The code that a record of a run folder names, None for none.

    Raises:
      CertificateError: if it is missing, damaged or exchanged.
    """
    return code_from_json(document and document["certificates"], Library(folder / FOLDER).get)
