"""Code of a received folder is validated in the sandbox before it runs."""

import json

import pytest
from certified_code import checked, code_of, edited

from nanoevolve_jax.codegen.sandbox import recertify, runner
from nanoevolve_jax.evolution.library import FOLDER, Library
from nanoevolve_jax.policy.certified import CertificateError, Certified, Code, digest
from nanoevolve_jax.policy.slots import built_in_source


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Provides an empty cache, as on a machine that has validated nothing yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def function():
    return checked(built_in_source("features"), "features", ())


def forged(function, source):
    """Returns the function's programs with another source and a certificate that fits both."""
    facts = json.loads(json.dumps(function.certificate)) | {
        "source_sha256": digest(source.encode())
    }
    return Certified(source, facts, function.programs)


def refuse(*arguments):
    raise AssertionError("validated again")


def test_code_that_was_validated_here_is_not_validated_again(function, monkeypatch):
    monkeypatch.setattr(runner, "run", refuse)
    recertify.remember(function)
    recertify.require_validated([code_of(function)], runner.REQUIRED)
    with pytest.raises(AssertionError, match="validated again"):
        recertify.validate(function, runner.isolation(runner.AVAILABLE))


def test_code_that_nothing_here_has_validated_is_validated_once(function, walls, monkeypatch):
    recertify.require_validated([code_of(function)], runner.REQUIRED)
    monkeypatch.setattr(runner, "run", refuse)
    recertify.require_validated([code_of(function)], runner.REQUIRED)


def test_the_lines_of_the_answer_that_a_source_came_from_do_not_matter(walls):
    """A certificate keeps the normalised source, but its programs name lines of the answer."""
    source = f"# a remark\n\n\n{built_in_source('gate')}"
    recertify.require_validated([code_of(checked(source, "gate", ()))], runner.REQUIRED)


def test_programs_of_another_source_are_refused(function, walls):
    source = edited("features", ("(0.0, 0.0, 0.0", "(0.5, 0.0, 0.0"))
    with pytest.raises(CertificateError, match="must be those that its source gives here"):
        recertify.require_validated([code_of(forged(function, source))], runner.REQUIRED)


def test_a_source_that_is_refused_here_does_not_run(function, walls):
    source = "def features(sensors):\n    return open('/etc/passwd')\n"
    other = forged(function, source)
    with pytest.raises(CertificateError, match="must pass validation, but is refused"):
        recertify.require_validated([code_of(other)], runner.REQUIRED)
    assert not recertify.is_known(other)


def test_a_program_for_no_matrix_is_refused(function):
    facts = json.loads(json.dumps(function.certificate))
    facts["programs"] = {"../x": facts["programs"]["scalar"]}
    other = Certified(function.source, facts, {"../x": function.programs["scalar"]})
    with pytest.raises(CertificateError, match=r"INPUTSxOUTPUTS, got '../x'"):
        recertify.validate(other, runner.isolation(runner.AVAILABLE))


def require_library_validated(library):
    """Validates a library as a campaign does before it starts."""
    codes = (Code((function,)) for function in library.all())
    recertify.require_validated(codes, runner.REQUIRED)


def test_the_library_of_a_received_folder_is_validated(function, walls, tmp_path):
    library = Library(tmp_path / FOLDER)
    library.put(function)
    require_library_validated(library)
    assert recertify.is_known(function)
    source = edited("features", ("(0.0, 0.0, 0.0", "(0.5, 0.0, 0.0"))
    library.put(forged(function, source))
    with pytest.raises(CertificateError, match="must be those that its source gives here"):
        require_library_validated(library)
