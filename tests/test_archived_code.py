"""Archived code must match the library's certified code, or it is refused."""

import pytest
from certified_code import BLEND, SOURCES, certify, write_campaign

from nanoevolve_jax.evolution import archive
from nanoevolve_jax.evolution.archive import ArchiveError
from nanoevolve_jax.evolution.library import Library
from nanoevolve_jax.evolution.proposals import require_certified_code
from nanoevolve_jax.execution import journal
from nanoevolve_jax.policy.certified import CertificateError, Certified, digest
from nanoevolve_jax.reporting.history import read_history


@pytest.fixture(scope="module")
def functions():
    return [certify(source, "direction", [(8, 8)]) for source in (BLEND, SOURCES["direction"])]


@pytest.fixture
def folder(tmp_path, functions):
    """Returns a campaign in which p0000 and its mutant p0000m1 have the first function."""
    folder = write_campaign(tmp_path / "run", functions[0])
    Library(folder / "code").put(functions[1])
    return folder


def edit(folder, line, change):
    """Changes a record's code and seals the archive again, as a forger would."""
    path = folder / "archive.jsonl"
    documents = journal.read(path).documents
    change(documents[line]["code"])
    journal.rewrite(path, documents)


def test_records_of_certified_code_are_read(folder):
    assert [record.id for record in read_history(folder).records] == [
        *("nanochat", "p0000", "p0000m1")
    ]


EDITS = {
    "a shown source": (1, lambda code, other: code.update(source="x = 1"), "code.source must be"),
    "a shown diff": (1, lambda code, other: code.update(diff="-a\n+b"), "code.diff must be"),
    "no diff": (1, lambda code, other: code.update(diff=None), "code.diff must be"),
    "checks": (
        1,
        lambda code, other: code["certificate"].update(checks=["everything"]),
        "has no certificate",
    ),
    "another slot": (1, lambda code, other: code.update(slot="gate"), "must be its parent.s"),
    "another certificate": (
        1,
        lambda code, other: code["certificates"].update(direction=other.id),
        "code.computation.direction must be that of certificate",
    ),
    "another function": (
        1,
        lambda code, other: code.update(
            certificates={"direction": other.id}, computation={"direction": other.computation}
        ),
        "code.slot must be that of its certificate",
    ),
    "a missing certificate": (
        2,
        lambda code, other: code["certificates"].update(direction="0" * 16),
        "has no certificate 0000000000000000",
    ),
    "a path for a certificate": (
        2,
        lambda code, other: code["certificates"].update(direction="../../0123456789abcdef"),
        "certificates",
    ),
    "code that its parent lacks": (
        2,
        lambda code, other: code.update(
            certificates={"direction": other.id}, computation={"direction": other.computation}
        ),
        "code.certificates.direction must be its parent's",
    ),
    "less code than its parent": (
        2,
        lambda code, other: code.update(certificates={}, computation={}),
        "code.certificates must be its parent's",
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_record_of_other_code_is_refused_even_if_it_is_sealed(folder, functions, name):
    line, change, message = EDITS[name]
    edit(folder, line, lambda code: change(code, functions[1]))
    with pytest.raises((ArchiveError, CertificateError), match=message) as caught:
        read_history(folder)
    assert "\n" not in str(caught.value)


def test_a_source_longer_than_any_that_is_certified_is_refused_before_it_is_compared(
    folder, functions
):
    source = "x = 1\n" * 4_000
    certificate = dict(functions[0].certificate) | {"source_sha256": digest(source.encode())}
    forged = Certified(source, certificate, functions[0].programs)
    Library(folder / "code").put(forged)

    def forge(code):
        code.update(certificates={"direction": forged.id}, source=source, certificate=certificate)

    edit(folder, 1, forge)
    with pytest.raises(CertificateError, match="must have at most 20,000 bytes, got 24,000"):
        require_certified_code(folder, archive.load_all(folder / "archive.jsonl"))


def test_a_damaged_library_is_named(folder, functions):
    (folder / "code" / functions[0].id / "source.py").write_text("x = 1")
    with pytest.raises(CertificateError, match=f"the source of certificate {functions[0].id}"):
        require_certified_code(folder, archive.load_all(folder / "archive.jsonl"))
