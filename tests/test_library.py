"""Certified code is read from the library as it was stored, or refused."""

import json
import os
import pickle
import shutil
import threading

import pytest

from nanoevolve_jax.codegen.sandbox import certify, runner
from nanoevolve_jax.evolution.library import Library
from nanoevolve_jax.policy.certified import CertificateError, Certified

SOURCE = """
def gate(sensors, features, control):
    return jax.nn.sigmoid(control.bias + {scale} * sensors.loss_ema)
"""


def certified(scale):
    walls = runner.isolation("available")
    source = SOURCE.format(scale=scale)
    verdict = certify.validate("gate", source, [], "float32", runner.Limits(), walls)
    assert verdict.refusal is None, verdict.refusal
    return verdict.certified


@pytest.fixture(scope="module")
def functions():
    """Returns two functions of one slot."""
    return certified(0.5), certified(2.0)


@pytest.fixture
def library(tmp_path, functions):
    """Returns a library that contains both functions."""
    library = Library(tmp_path / "code")
    for function in functions:
        library.put(function)
    return library


def test_what_is_put_comes_back(library, functions):
    for function in functions:
        found = library.get(function.id)
        assert found == function
        assert (found.source, found.certificate) == (function.source, function.certificate)
        assert found.programs == function.programs
        found.load(None)
    assert [f.id for f in library.all()] == sorted(f.id for f in functions)


def test_putting_again_changes_nothing(library, functions):
    def content():
        return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in library.folder.rglob("*.*")}

    before = content()
    library.put(functions[0])
    assert content() == before
    assert [path.name for path in library.folder.iterdir() if path.name.startswith(".")] == []


def test_many_may_put_the_same_at_once(tmp_path, functions):
    library = Library(tmp_path / "code")
    threads = [threading.Thread(target=library.put, args=(functions[0],)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [f.id for f in library.all()] == [functions[0].id]


def test_a_damaged_folder_is_written_anew(library, functions):
    (library.folder / functions[0].id / "source.py").write_text("")
    library.put(functions[0])
    assert library.get(functions[0].id) == functions[0]


def test_a_record_names_its_functions_by_slot(library, functions):
    assert library.code({"gate": functions[0].id}).of("gate") == functions[0]
    assert library.code(None) is None
    assert library.code({}) is None
    with pytest.raises(
        CertificateError, match="must be for slot 'features', as its record says, got 'gate'"
    ):
        library.code({"features": functions[0].id})


def test_code_that_is_not_what_its_certificate_says_is_not_stored(tmp_path, functions):
    one, two = functions
    with pytest.raises(CertificateError, match="has another hash"):
        Library(tmp_path).put(Certified(one.source, one.certificate, two.programs))
    assert list(tmp_path.iterdir()) == []


def _forge(folder, other):
    certificate = json.loads((folder / "certificate.json").read_text())
    certificate["checks"] = ["everything"]
    (folder / "certificate.json").write_text(json.dumps(certificate))


def _whole_other(folder, other):
    shutil.rmtree(folder)
    shutil.copytree(other, folder)


def _link_out(name):
    def damage(folder, other):
        (folder / name).unlink()
        (folder / name).symlink_to(other / name)

    return damage


def _link_folder(folder, other):
    shutil.rmtree(folder)
    folder.symlink_to(other)


def _pipe(folder, other):
    (folder / "source.py").unlink()
    os.mkfifo(folder / "source.py")


def _pickle(folder, other):
    (folder / "certificate.json").write_bytes(pickle.dumps({"slot": "gate"}))


def _write(name, content):
    return lambda folder, other: (folder / name).write_bytes(content)


DAMAGES = {
    "a forged certificate": (_forge, "was changed: it is certificate"),
    "another certificate's folder": (_whole_other, "was changed: it is certificate"),
    "a swapped program": (
        lambda folder, other: shutil.copy(other / "scalar.stablehlo", folder),
        "program for scalar of certificate .* has another hash",
    ),
    "a swapped source": (
        lambda folder, other: shutil.copy(other / "source.py", folder),
        "source of certificate .* has another hash",
    ),
    "a truncated program": (
        lambda folder, other: os.truncate(folder / "scalar.stablehlo", 100),
        "has another hash",
    ),
    "a missing program": (
        lambda folder, other: (folder / "scalar.stablehlo").unlink(),
        "scalar.stablehlo is missing",
    ),
    "a missing source": (
        lambda folder, other: (folder / "source.py").unlink(),
        "source.py is missing",
    ),
    "a missing certificate": (
        lambda folder, other: (folder / "certificate.json").unlink(),
        "certificate.json is missing or not a certificate",
    ),
    "a pickle beside": (_write("code.pkl", b"."), "code.pkl does not belong to the certificate"),
    "a pickle as the certificate": (_pickle, "is missing or not a certificate"),
    "a certificate of another kind": (_write("certificate.json", b"[]"), "not a certificate"),
    "a certificate of brackets": (_write("certificate.json", b"[" * 200_000), "not a certificate"),
    "a certificate with NaN": (
        lambda folder, other: (folder / "certificate.json").write_text(
            (other / "certificate.json").read_text().replace('"format": 1', '"format": NaN')
        ),
        "not a certificate: numbers must be finite, got NaN",
    ),
    "a source that is no text": (_write("source.py", b"\xff\xfe"), "cannot be read"),
    "a linked source": (_link_out("source.py"), "must be a regular file, got a link"),
    "a linked program": (
        _link_out("scalar.stablehlo"),
        "must be a regular file, got a link",
    ),
    "a linked certificate": (
        _link_out("certificate.json"),
        "must be a regular file, got a link",
    ),
    "a linked folder": (_link_folder, "must be a folder"),
    "a pipe": (_pipe, "must be a regular file, got a pipe"),
    "a folder inside": (
        lambda folder, other: (folder / "more").mkdir(),
        "more must be a regular file, got a folder",
    ),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_damage_is_refused_in_one_line(library, functions, what):
    damage, words = DAMAGES[what]
    one, two = (library.folder / f.id for f in functions)
    damage(one, two)
    with pytest.raises(CertificateError, match=words) as refused:
        library.get(functions[0].id)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("id", ["", "..", "../code", "A" * 16, "0" * 15, "0" * 17, "0" * 16, None])
def test_an_id_that_names_nothing_is_refused(library, id):
    with pytest.raises(CertificateError, match=r"must be 16 hexadecimal|has no certificate"):
        library.get(id)
