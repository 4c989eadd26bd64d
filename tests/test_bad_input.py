"""Bad input to every command ends in one line that names it, with exit code 2.

A row of `CASES` is a command line and what its error must hold; braces hold keys of `places`.
"""

import json
import os
import shutil
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from nanoevolve_jax.configs import screen
from records import make_record
from test_search import SETTINGS, write_corpus

from nanoevolve_jax.evidence.card import KIND
from nanoevolve_jax.evidence.sealed import write_sealed
from nanoevolve_jax.evolution import archive
from nanoevolve_jax.policy.spec import NANOCHAT
from nanoevolve_jax.policy.spec_json import spec_to_json

WITH_CONFIG = ("search", "calibrate", "confirm", "compare")
TINY = [f"--config.{path}={value}" for path, value in SETTINGS.items()]
TINY += [
    "--config.confirm.steps=6",
    "--config.data.corpus=parquet:{corpus}",
    "--config.data.cache_dir={cache}",
]

PAIR = ("nanochat", "annealing")

CASES = [
    ("", ["serch"], ["command must be search", "got 'serch'"]),
    ("", ["--nope"], ["command must be search or calibrate", "got '--nope'"]),
    ("", ["help", "nope"], ["command must be ", "got 'nope'"]),
    *[
        (name, arguments, parts)
        for name in WITH_CONFIG
        for arguments, parts in [
            (["--nope=1"], ["Unknown command line flag 'nope'"]),
            (["--config=nope.py"], ["--config must be a file", "got 'nope.py'"]),
            (["--config", "configs/nope.py"], ["--config must be a file", "'configs/nope.py'"]),
            (["--config={empty}"], ["--config must be a file", "got '{empty}'"]),
            (["--config={file}"], ["--config: "]),
            (["--config.wrokdir=x"], ["config.wrokdir is not a field", "mean config.workdir?"]),
            (["--config.workdir="], ["config.workdir must be non-empty", "got ''"]),
            (["--config.engine=rya"], ["config.engine must be local or ray, got 'rya'"]),
        ]
    ],
    *[
        (name, ["stray"], ["argument 'stray' is not a flag"])
        for name in ("search", "calibrate", "confirm")
    ],
    *[
        (name, [*TINY, *arguments], parts)
        for name in ("search", "calibrate")
        for arguments, parts in [
            (["--config.train.steps=0"], ["config.train.steps must be an integer from 1", "got 0"]),
            (["--config.train.steps=x"], ["config.train.steps must be an integer", "got 'x'"]),
            (
                ["--config.recipe.matrix_lr=nan"],
                ["config.recipe.matrix_lr must", "to 100, got nan"],
            ),
            (["--config.data.vocab_size="], ["config.data.vocab_size must be an", "got ''"]),
            (["--config.data_parallel=4"], ["config.data_parallel must divide", "got 4"]),
            (["--config.distributed=auto"], ["config.distributed is 'auto'", "JAX_COORDINATOR_AD"]),
            (["--config.plan=maybe"], ["config.plan must be False or True, got 'maybe'"]),
            (["--config=configs/screen.py:d13"], ["be cpu or d4 or d12, got 'd13'"]),
            (
                ["--config.data.corpus=parquet:{empty}"],
                ["config.data.corpus='parquet:{empty}' must hold"],
            ),
            (
                ["--config.data.corpus=parquet:{copies}"],
                ["'parquet:{copies}' must have training text, got only 30 copies"],
            ),
            (
                ["--config.data.corpus=parquet:{doubled}"],
                ["data.corpus: {doubled}/shard_00000.parquet must have one column 'text', got 2"],
            ),
            (["--config.data.cache_dir={file}"], ["config.data.cache_dir must be", "got '{file}'"]),
            (
                ["--config.data.cache_dir={file}/below"],
                ["config.data.cache_dir must be a place", "'{file}/below'", "Not a directory"],
            ),
            (["--config.workdir={file}"], ["config.workdir must be a folder", "got '{file}'"]),
            (["--config.workdir={file}/below"], ["config.workdir must", "got '{file}/below'"]),
            (["--config.workdir={half}"], ["{half}/config.json is damaged", "another workdir"]),
            (["--config.workdir={headless}"], ["config.workdir must be a new", "'{headless}'"]),
        ]
    ],
    ("search", [*TINY, "--config.calibration={empty}/c.json"], ["c.json does not exist; allowed"]),
    (
        "search",
        [*TINY, "--config.calibration={file}"],
        ["{file} cannot be read as a calibration file"],
    ),
    ("calibrate", ["--config.calibration=c.json"], ["config.calibration", "'c.json'"]),
    ("confirm", ["--config.workdir={empty}"], ["config.workdir must be the folder", "'{empty}'"]),
    ("confirm", ["--config.workdir={half}"], ["config.workdir must be the folder", "'{half}'"]),
    ("confirm", ["--config.workdir={run}"], ["config.workdir must be a search with", "'{run}'"]),
    ("confirm", ["--config.until=never"], ["config.until must be confirm or", "'never'"]),
    ("compare", [*TINY, "nanochat"], ["specs are 1; allowed: two or more"]),
    ("compare", [*TINY, "nanochat", "nanochta"], ["'nanochta'", "such as nanochat"]),
    ("compare", [*TINY, "nanochat", "{spec}"], ["{spec}: spec.ns_steps is 9; allowed: an integer"]),
    ("compare", [*TINY, "nanochat", "{file}"], ["{file}"]),
    ("compare", [*TINY, "nanochat", "{empty}"], ["{empty}"]),
    ("compare", [*TINY, "nanochat", "{empty}/no.json"], ["{empty}/no.json"]),
    ("compare", [*TINY, "nanochat", "{run}:g009c09"], ["'g009c09'", "{run}/archive.jsonl"]),
    (
        "compare",
        [*TINY, *PAIR, "--config.workdir={file}"],
        ["config.workdir must", "'{file}/compare'"],
    ),
    (
        "compare",
        [*TINY, *PAIR, "--config.compare.seeds=1"],
        ["config.compare.seeds must be an", "got 1"],
    ),
    ("show", [], ["arguments are 'nothing'; allowed: DIR"]),
    ("show", ["{empty}"], ["DIR is '{empty}'; allowed: the folder of a search"]),
    ("show", ["{empty}/nowhere"], ["DIR is '{empty}/nowhere'; allowed: the folder of a search"]),
    ("show", ["{file}"], ["DIR is '{file}'; allowed: the folder of a search"]),
    ("show", ["{half}"], ["DIR is '{half}'; allowed: the folder of a search"]),
    ("show", ["{cut}"], ["DIR is '{cut}', in which no generation is finished; allowed: "]),
    ("show", ["{run}", "g009c09"], ["candidate is 'g009c09'; allowed: an id of {run}/archive"]),
    ("show", ["{run}", "nanochat", "--diff"], ["nanochat --diff'; allowed: DIR --diff and two"]),
    ("show", ["{run}", "--diff", "nanochat", "{spec}"], ["{spec}: spec.ns_steps is 9; allowed: "]),
    ("show", ["{run}", "--jsno"], ["Unknown command line flag 'jsno'", "json"]),
    ("show", ["{run}", "--json=perhaps"], ["--json must be true or false, got 'perhaps'"]),
    ("report", ["--workdir={empty}"], ["--workdir is '{empty}'; allowed: the folder of a search"]),
    ("report", ["--workdir={half}"], ["--workdir is '{half}'; allowed: the folder of a search"]),
    ("report", ["--workdir={cut}"], ["workdir is '{cut}', in which no generation is finished"]),
    ("report", ["--workdir={run}", "--out={file}/r.html"], ["{file}/r.html'"]),
    ("report", ["--workdir={run}", "--out={empty}"], ["--out", "'{empty}'"]),
    ("report", ["--wrokdir=x"], ["Unknown command line flag 'wrokdir'", "workdir"]),
    ("report", ["{run}"], ["'{run}'", "allowed: "]),
    ("export", ["--to=json"], ["allowed: one"]),
    ("export", ["annealing"], ["--to is ", "optax, torch, json"]),
    ("export", ["annealing", "--to=tensorflow"], ["--to is 'tensorflow'", "optax, torch, json"]),
    ("export", ["annaeling", "--to=json", "--workdir={run}"], ["'annaeling'", "annealing"]),
    ("export", ["g9", "--to=json", "--workdir={empty}"], ["'{empty}'; allowed: the folder of a"]),
    ("export", ["g9", "--to=json", "--workdir={half}"], ["'{half}'; allowed: the folder of a"]),
    ("export", ["{spec}", "--to=optax"], ["{spec}: spec.ns_steps is 9; allowed: an integer"]),
    ("export", ["annealing", "--to=json", "--out={file}"], ["'{file}'", "--force"]),
    ("export", ["annealing", "--to=json", "--out={file}/x"], ["'{file}/x'"]),
    ("replay", [], ["0 arguments; allowed: one evidence card"]),
    ("replay", ["{card}", "{card}"], ["2 arguments; allowed: one evidence card"]),
    ("replay", ["{empty}/nope.json"], ["nope.json does not exist; allowed: an evidence file"]),
    (
        "replay",
        ["{empty}"],
        ["{empty} cannot be read as an evidence", "regular file, got a folder"],
    ),
    ("replay", ["{file}"], ["{file} cannot be read as an evidence file"]),
    ("replay", ["{edited}"], ["{edited} was changed after it was written"]),
    ("replay", ["{card}"], ["{card} holds no comparison; allowed: a card with"]),
    ("replay", ["{card}", "--pairs=0"], ["--pairs must be a positive integer, got '0'"]),
    ("replay", ["{card}", "--pairs=x"], ["--pairs must be a positive integer, got 'x'"]),
    ("replay", ["{card}", "--pairs"], ["Missing value for flag --pairs"]),
    ("replay", ["{card}", "--pears=1"], ["Unknown command line flag 'pears'", "pairs"]),
    ("replay", ["{card}", "--config.seed=1"], ["config.seed is not a field"]),
]

VALIDATE_CASES = [
    ([], ["0 arguments; allowed: SLOT and FILE"]),
    (["gate"], ["1 arguments; allowed: SLOT and FILE"]),
    (["gate", "{spec}", "{spec}"], ["3 arguments; allowed: SLOT and FILE"]),
    (["gtae", "{spec}"], ["SLOT is 'gtae'; allowed: direction, gate, actuate, features"]),
    (["gate", "{empty}/no.py"], ["FILE is '{empty}/no.py', No such file or directory; allowed"]),
    (["gate", "{empty}"], ["FILE is '{empty}', no plain file; allowed: a file of at most"]),
    (["gate", "{link}"], ["FILE is '{link}', a link; allowed: a file"]),
    (["gate", "{large}"], ["FILE is '{large}', larger than that; allowed: a file of at most"]),
    (["gate", "{binary}"], ["FILE is '{binary}', not UTF-8; allowed: a file"]),
    (["gate", "{spec}", "--out={file}"], ["--out is '{file}'; allowed: a folder"]),
    (
        ["gate", "{spec}", "--isolation=some"],
        ["isolation", "'some'"],
    ),
    (["gate", "{spec}", "--config=nope.py"], ["--config must be a file", "got 'nope.py'"]),
    (["gate", "{spec}", "--config.model.n_embd=1"], ["config.model.n_embd must be an", "got 1"]),
    (["gate", "{spec}", "--uot=x"], ["Unknown command line flag 'uot'", "out"]),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory, repository):
    """Folders and files that are empty, damaged, or fine and used wrongly."""
    root = tmp_path_factory.mktemp("bad")
    folders = ("empty", "half", "headless", "cut", "run", "cache")
    files = ("file", "card", "edited", "spec", "link", "large", "binary")
    corpora = ("corpus", "copies", "doubled")
    found = {name: root / name for name in (*folders, *files, *corpora)}
    for name in folders:
        found[name].mkdir()
    for name in corpora:
        write_corpus(found[name])
    shard = "shard_00000.parquet"
    shutil.copyfile(found["copies"] / "shard_00001.parquet", found["copies"] / shard)
    text = pa.array(["some text"])
    pq.write_table(pa.table([text, text], names=["text", "text"]), found["doubled"] / shard)
    description = json.dumps(
        {"config": screen.get_config().to_dict(), "versions": {}, "device": {}}
    )
    for name in ("half", "headless", "cut", "run"):
        archive.append(found[name] / "archive.jsonl", [make_record()])
    (found["half"] / "config.json").write_text(description[: len(description) // 2])
    for name in ("cut", "run"):
        (found[name] / "config.json").write_text(description)
    os.truncate(found["cut"] / "archive.jsonl", 100)
    found["spec"].write_text(json.dumps(spec_to_json(NANOCHAT) | {"ns_steps": 9}))
    found["file"].write_text("no folder, no JSON and no Python")
    found["link"].symlink_to(found["spec"])
    found["large"].write_text("#" * 50_000)
    found["binary"].write_bytes(b"\xff\xfe\x00")
    own = json.loads((repository / "results/classics_cpu/evidence/g002c05.json").read_text())
    write_sealed(found["card"], KIND, own | {"confirmation": None, "retuned_baseline": True})
    found["edited"].write_text(found["card"].read_text().replace("null", "{}"))
    return found


def content(places):
    """What lies in the places, but for the cache and locks, which commands may write to."""
    return {
        path: path.read_bytes()
        for name, place in places.items()
        for path in (place.rglob("*") if place.is_dir() else [place])
        if name != "cache" and path.is_file() and path.name != ".lock"
    }


@pytest.mark.parametrize(
    ("name", "arguments", "parts"),
    CASES,
    ids=[" ".join([name, *(a for a in line if a not in TINY)]) for name, line, _ in CASES],
)
def test_bad_input_ends_in_one_line_and_loses_nothing(shell, places, name, arguments, parts):
    before = content(places)
    line = [argument.format(**places) for argument in [name, *arguments] if argument]
    code, _, errors = shell(*line, folder=places["empty"])
    assert errors.startswith("error: "), errors
    assert errors.count("\n") == 1, errors
    assert code == 2
    for part in parts:
        assert part.format(**places) in errors
    assert content(places) == before


@pytest.mark.parametrize(
    ("arguments", "parts"), VALIDATE_CASES, ids=[" ".join(line) for line, _ in VALIDATE_CASES]
)
def test_bad_input_to_validate_too(shell, places, arguments, parts):
    line = ["nanoevolve_jax.codegen.validate", *arguments]
    test_bad_input_ends_in_one_line_and_loses_nothing(shell, places, "-m", line, parts)


@pytest.mark.parametrize("field", ["workdir", "data.cache_dir"])
def test_a_place_without_permission_is_named(places, repository, tmp_path, field):
    tmp_path.chmod(0o500)
    command = [sys.executable, "-m", "nanoevolve_jax.search"]
    if os.geteuid() == 0:  # whom permissions bind only without these powers
        if shutil.which("setpriv") is None:
            pytest.skip("root may write anywhere, and setpriv is not here to forbid it")
        powers = "-dac_override,-dac_read_search"
        command = ["setpriv", f"--inh-caps={powers}", f"--bounding-set={powers}", *command]
    tiny = [argument.format(**places) for argument in TINY]
    ended = subprocess.run(
        [*command, *tiny, f"--config.{field}={tmp_path}/mine"],
        cwd=repository,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith(f"error: config.{field} must be ")
    assert "Permission denied" in ended.stderr
