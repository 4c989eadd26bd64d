"""Damaged and forged run folders are read or refused in one line, without tracebacks or hangs."""

import contextlib
import io
import json
import shutil
import zipfile
from pathlib import Path

import confirmed as made
import msgspec
import numpy as np
import pytest
from certified_code import BLEND, certify, write_campaign
from mutations_of_json import REMOVED, TEXTS, VALUES, is_plain, mutated, paths, to_text

from nanoevolve_jax.codegen import ensemble
from nanoevolve_jax.codegen.mutators import providers
from nanoevolve_jax.codegen.mutators.calls import ANSWER, Answer
from nanoevolve_jax.configs.confirm import get_config
from nanoevolve_jax.errors import UserError
from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evidence.ledger import open_ledger
from nanoevolve_jax.evidence.sealed import write_sealed
from nanoevolve_jax.evidence.trajectories import read_telemetry
from nanoevolve_jax.evolution import archive, proposals
from nanoevolve_jax.evolution.confirming import select
from nanoevolve_jax.evolution.run_folder import FORMAT, open_folder, read_search
from nanoevolve_jax.execution import journal
from nanoevolve_jax.execution.json_files import write_json
from nanoevolve_jax.reporting import page
from nanoevolve_jax.reporting.candidates import candidate_details
from nanoevolve_jax.reporting.history import read_history
from nanoevolve_jax.reporting.policies import origin_of
from nanoevolve_jax.reporting.summary import overview
from nanoevolve_jax.terminal.console import Console
from nanoevolve_jax.terminal.pages import candidate_page, overview_page, render

BEGUN = "begun_with.json"  # a copy of config.json that is never mutated
FAST, SLOW, REPORTED = 20, 500, 50  # mutations per file in fast and slow tests, and in reports
CONFIRMED = (
    *("config.json", "archive.jsonl", "summary.json", "runs.jsonl", "promotion.json"),
    *("calibration.json", f"evidence/{made.WINNER}.json"),
)
CAMPAIGN = ("config.json", "archive.jsonl", "proposals.jsonl", "proposals/0000/try-1/answer.json")


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    """Returns the run folder of a search with a confirmed winner."""
    return made_search(tmp_path_factory.mktemp("mutated") / "run")


def made_search(folder):
    """Writes the run folder with only the first runs, so that reading it is fast."""
    made.write(folder, Path(__file__).parent.parent)
    description = json.loads((folder / "config.json").read_text())
    prints = dict.fromkeys(("corpus", "tokenizer", "calibration", "campaign", "config"), "c0ffee")
    description |= {"format": FORMAT, "fingerprints": prints}
    for name in ("config.json", BEGUN):
        (folder / name).write_text(json.dumps(description))
    runs = folder / "runs.jsonl"
    journal.rewrite(runs, journal.read(runs).documents[:40])
    return folder


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    """Returns the run folder of a code campaign."""
    function = certify(BLEND, "direction", [(8, 8)])
    folder = write_campaign(tmp_path_factory.mktemp("mutated") / "campaign", function)
    call = folder / "proposals" / "0000" / "try-1"
    call.mkdir(parents=True)
    answer = Answer("x", 1, 1, 0.1, 1.0, 1, 0, None, "one", "model")
    write_json(call / ANSWER, msgspec.to_builtins(answer))
    return folder


def show(folder):
    """Reads and prints everything that `show` and `export` use, and returns the history."""
    history = read_history(folder)
    console = Console(width=80, file=io.StringIO())
    render(overview_page(overview(history, 5)), console)
    for record in history.records[:1] + history.records[-2:-1]:
        render(candidate_page(candidate_details(history, record), full_spec=True), console)
        origin_of(history, record)
    return history


def report(folder):
    """Returns the complete report of a folder."""
    return page.render(show(folder))


def resume(folder):
    """Reads everything that a search and a confirmation read before they resume."""
    settings = get_config()
    settings.workdir = str(folder)
    read_search(settings)
    open_folder(folder, json.loads((folder / BEGUN).read_text()))
    archive.load(folder / "archive.jsonl", [2, 5])
    select(folder, "promoted")


def read_campaign(folder):
    """Reads everything that `ensemble` and a resumed code campaign read."""
    ensemble.settings_of(folder)
    proposals.read(folder / proposals.FILE)
    ensemble.page_of(providers.load(providers.FILE), folder, None)


def mutations(path, count):
    """Yields mutations of a file that each change one node, with a new seal where possible.

    Args:
      path: Path of the file.
      count: Largest number of mutations, which are drawn at random.

    Yields:
      ((path of the node, new value), function that writes the mutated file).
    """
    lines = path.suffix == ".jsonl"
    document = journal.read(path).documents if lines else json.loads(path.read_text())
    pairs = [(where, value) for where in paths(document) for value in (REMOVED, *VALUES)]
    rng = np.random.default_rng(0)
    pairs = [pairs[i] for i in rng.permutation(len(pairs))[:count]]
    for where, value in pairs:
        changed = mutated(document, where, value)
        yield (where, value), lambda changed=changed, value=value: write(path, changed, value)


def write(path, document, value):
    """Writes a mutated document, with valid seals if JSON can represent the value."""
    if not is_plain(value):
        lines = document if path.suffix == ".jsonl" else [document]
        path.write_text("".join(to_text(line) + "\n" for line in lines))
    elif path.suffix == ".jsonl":
        if all(isinstance(line, dict) for line in document):
            journal.rewrite(path, document)
        else:
            path.write_text("".join(json.dumps(line) + "\n" for line in document))
    elif isinstance(document, dict) and "seal" in document:
        rest = {name: part for name, part in document.items() if name not in ("format", "seal")}
        write_sealed(path, document.get("kind"), rest | {"format": document.get("format")})
    else:
        path.write_text(json.dumps(document))


def require_one_line(use, folder, what):
    """Uses a folder, requires that any error has one line, and returns that line."""
    try:
        use(folder)
    except UserError as error:
        assert str(error), what
        assert "\n" not in str(error), what
        return str(error)
    except Exception as error:
        raise AssertionError(f"{what} ends in {error!r}") from error
    return None


def try_all(use, folder, name, count):
    """Uses a folder under each mutation of one of its files, then restores the file."""
    path = folder / name
    before = path.read_bytes()
    try:
        for what, write_it in mutations(path, count):
            write_it()
            require_one_line(use, folder, what)
        for content in TEXTS if count > FAST else TEXTS[::4]:
            path.write_bytes(content)
            require_one_line(use, folder, content[:20])
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("name", CONFIRMED)
def test_a_mutated_search_is_shown_or_refused_in_one_line(search, name):
    try_all(show, search, name, FAST)


@pytest.mark.parametrize("name", CAMPAIGN)
def test_a_mutated_campaign_is_shown_or_refused_in_one_line(campaign, name):
    try_all(show, campaign, name, FAST)
    try_all(read_campaign, campaign, name, FAST)


@pytest.mark.parametrize("name", CONFIRMED)
def test_a_mutated_search_is_resumed_or_refused_in_one_line(search, name, tmp_path):
    folder = shutil.copytree(search, tmp_path / "run")
    try_all(resume, folder, name, FAST)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIRMED)
def test_many_mutations_are_reported_or_refused_in_one_line(search, name):
    try_all(show, search, name, SLOW)
    try_all(report, search, name, REPORTED)


# Telemetry -----------------------------------------------------------------------------------

COLUMNS = made.columns_of(0, 20) | {"validation_step": [0, 10], "validation_bpb": [3.0, 2.0]}


def header(shape, descr="<f4"):
    """Returns the header of a column that claims to have this shape."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


def zipped(**members):
    """Returns an .npz file of these members and otherwise valid columns."""
    file = io.BytesIO()
    np.savez_compressed(file, **{n: x for n, x in COLUMNS.items() if f"{n}.npy" not in members})
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archived:
        for name, content in members.items():
            archived.writestr(name, content)
    return file.getvalue()


def stored(**columns):
    file = io.BytesIO()
    np.savez_compressed(file, **COLUMNS | columns)
    return file.getvalue()


TELEMETRY = {
    "no zip": (b"loss", "not a zip file"),
    "an array alone": (header((3,)) + bytes(12), "not a zip file"),
    "objects": (stored(loss=np.array([{}] * 20, object)), "loss.npy must be a column"),
    "words": (stored(loss=np.array(["x"] * 20)), "loss.npy must be a column"),
    "complex numbers": (stored(loss=np.zeros(20, complex)), "loss.npy must be a column"),
    "a table": (stored(loss=np.zeros((20, 2))), "loss.npy must be a column"),
    "a scalar": (stored(loss=np.float32(1)), "loss.npy must be a column"),
    "another length": (stored(loss=np.zeros(3)), "columns must have one length"),
    "a curve without steps": (
        stored(validation_step=np.zeros(0, int)),
        "columns must have one length",
    ),
    "steps that are no integers": (stored(validation_step=[0.5, 1.0]), "validation_step.npy must"),
    "36 TiB": (zipped(**{"loss.npy": header((10**13,))}), "at most 10,000,000 numbers"),
    "less than it says": (zipped(**{"loss.npy": header((20,)) + bytes(7)}), "buffer"),
    "a negative shape": (zipped(**{"loss.npy": header((-1,))}), "loss.npy must be a column"),
    "a header of brackets": (
        zipped(**{"loss.npy": b"\x93NUMPY\x01\x00\xff\x00" + b"[" * 255}),
        "begin with the header",
    ),
    "a script": (zipped(**{"code.py": b"print()"}), "must hold columns as numpy writes them"),
    "another version": (zipped(**{"loss.npy": b"\x93NUMPY\x07\x00"}), "of .npy format 1.0"),
}


@pytest.mark.parametrize("damage", TELEMETRY)
def test_telemetry_of_another_form_is_refused_in_one_line(tmp_path, damage):
    content, message = TELEMETRY[damage]
    (tmp_path / "telemetry").mkdir()
    (tmp_path / "telemetry" / "g001c00.npz").write_bytes(content)
    with pytest.raises(EvidenceError, match=rf"g001c00.npz cannot be read: .*{message}") as caught:
        read_telemetry(tmp_path, "g001c00")
    assert "\n" not in str(caught.value)


def test_telemetry_lacks_no_column(tmp_path):
    (tmp_path / "telemetry").mkdir()
    for name in ("loss", "gate", "grad_norm", "validation_step"):
        kept = {column: x for column, x in COLUMNS.items() if column != name}
        kept = kept if name != "validation_step" else kept | {"validation_bpb": []}
        np.savez(tmp_path / "telemetry" / "x.npz", **kept)
        with pytest.raises(EvidenceError, match=r"must have|one length"):
            read_telemetry(tmp_path, "x", ("grad_norm", "validation_step"))


@pytest.mark.parametrize("name", ["../x", "", ".x", "a/b", "x" * 65, None])
def test_telemetry_is_found_by_ids_alone(tmp_path, name):
    with pytest.raises(EvidenceError, match="name of telemetry must be an id"):
        read_telemetry(tmp_path / "run", name)


def test_telemetry_with_changed_bytes_is_read_or_refused_in_one_line(tmp_path):
    content, rng = stored(), np.random.default_rng(0)
    path = tmp_path / "telemetry" / "x.npz"
    path.parent.mkdir()
    for _ in range(200):
        damaged = bytearray(content)
        for place in rng.integers(len(content), size=3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged[: rng.integers(1, len(damaged) + 1)])
        require_one_line(lambda folder: read_telemetry(folder, "x"), tmp_path, bytes(damaged[:9]))


# The ledger ----------------------------------------------------------------------------------


def test_a_mutated_ledger_is_refused_in_one_line(tmp_path):
    path = tmp_path / "f00d.jsonl"
    ledger = open_ledger(path, "f00d", 8)
    ledger.register_campaign("campaign", 3, 1, "run")
    ledger.finish(ledger.consume("campaign", "g001c00").number, "win")

    def use(folder):
        found = open_ledger(path, "f00d", 8)
        found.confirmations()
        found.consume("campaign", "g001c00")

    head = path.with_suffix(".head.json")
    kept = path.read_bytes(), head.read_bytes()
    for what, write_it in mutations(path, SLOW):
        write_it()
        with contextlib.suppress(ValueError):
            seals = journal.read(path).seals
            write_sealed(head, "ledger head", {"count": len(seals), "last": seals[-1]})
        require_one_line(use, tmp_path, what)
        path.write_bytes(kept[0])
        head.write_bytes(kept[1])
    use(tmp_path)
    try_all(use, tmp_path, head.name, SLOW)
