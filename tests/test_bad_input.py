"""Bad input to a command ends in one line that names the input, with exit code 2.

Braces in a row of `CASES` contain keys of `places`.
"""

import json
import os
import shutil
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from records import make_record
from test_search import SETTINGS, write_corpus

from nanoevolve_jax.configs import screen
from nanoevolve_jax.evidence.card import KIND
from nanoevolve_jax.evidence.sealed import write_sealed
from nanoevolve_jax.evolution import archive
from nanoevolve_jax.policy.spec import NANOCHAT
from nanoevolve_jax.policy.spec_json import spec_to_json

TINY = [f"--config.{path}={value}" for path, value in SETTINGS.items()]
TINY += ["--config.confirm.steps=6", "--config.data.corpus=parquet:{corpus}"]
TINY += ["--config.data.cache_dir={cache}"]

# Each row is a command line, followed by parts that its error must contain. These name at least the
# field and the value.
CASES = """
serch                                       | command must be search | 'serch'
--nope                                      | command must be search | '--nope'
help nope                                   | command must be | 'nope'
CONFIG --nope=1                             | Unknown command line flag 'nope'
CONFIG --config=nope.py                     | --config must be a file | 'nope.py'
CONFIG --config configs/nope.py             | --config must be a file | 'configs/nope.py'
CONFIG --config={empty}                     | --config must be a file | '{empty}'
CONFIG --config={file}                      | --config:
CONFIG --config.wrokdir=x                   | config.wrokdir is not a field | config.workdir?
CONFIG --config.workdir=                    | config.workdir must be | ''
CONFIG --config.engine=rya                  | config.engine must be local or ray, got 'rya'
confirm stray                               | 'stray'
TRAIN stray                                 | 'stray'
TRAIN --config.train.steps=0                | config.train.steps must be an integer from 1 | got 0
TRAIN --config.train.steps=x                | config.train.steps must be an integer from 1 | 'x'
TRAIN --config.recipe.matrix_lr=nan         | config.recipe.matrix_lr must be a number | got nan
TRAIN --config.data.vocab_size=             | config.data.vocab_size must be an integer | ''
TRAIN --config.data_parallel=4              | config.data_parallel must divide | got 4
TRAIN --config.distributed=auto             | config.distributed | JAX_COORDINATOR_AD
TRAIN --config.plan=maybe                   | config.plan must be False or True, got 'maybe'
TRAIN --config=configs/screen.py:d13        | cpu or d4 or d12 | 'd13'
TRAIN --config.data.corpus=parquet:{empty}  | data.corpus | {empty}
TRAIN --config.data.corpus=parquet:{copies} | data.corpus | {copies} | 30
TRAIN --config.data.corpus=parquet:{doubled} | data.corpus | {doubled}/shard_00000.parquet | 'text'
TRAIN --config.data.cache_dir={file}        | config.data.cache_dir must | '{file}'
TRAIN --config.data.cache_dir={file}/below  | config.data.cache_dir must | Not a directory
TRAIN --config.workdir={file}               | config.workdir must be a folder | '{file}'
TRAIN --config.workdir={file}/below         | config.workdir must be a folder | '{file}/below'
TRAIN --config.workdir={half}               | {half}/config.json is damaged
TRAIN --config.workdir={headless}           | config.workdir must be a new folder | '{headless}'
search --config.calibration={empty}/c.json  | c.json
search --config.calibration={file}          | {file}
calibrate --config.calibration=c.json       | config.calibration | 'c.json'
confirm --config.workdir={empty}            | config.workdir must be the folder of | '{empty}'
confirm --config.workdir={half}             | config.workdir must be the folder of | '{half}'
confirm --config.workdir={run}              | config.workdir must be a search with a cal | '{run}'
confirm --config.until=never                | config.until must be confirm or | 'never'
compare nanochat                            | specs
compare nanochat nanochta                   | 'nanochta' | nanochat
compare nanochat {spec}                     | {spec}: spec.ns_steps | 9
compare nanochat {file}                     | {file}
compare nanochat {empty}                    | {empty}
compare nanochat {empty}/no.json            | {empty}/no.json
compare nanochat {run}:g009c09              | 'g009c09' | {run}/archive.jsonl
compare nanochat annealing --config.workdir={file}   | config.workdir must | '{file}/compare'
compare nanochat annealing --config.compare.seeds=1  | config.compare.seeds must be an | got 1
show                                        | DIR
show {empty}                                | DIR must be | '{empty}'
show {empty}/nowhere                        | DIR must be | '{empty}/nowhere'
show {file}                                 | DIR must be | '{file}'
show {half}                                 | DIR must be | '{half}'
show {cut}                                  | DIR | {cut}
show {run} g009c09                          | 'g009c09' | {run}/archive
show {run} nanochat --diff                  | --diff
show {run} --diff nanochat {spec}           | {spec}: spec.ns_steps | 9
show {run} --jsno                           | Unknown command line flag 'jsno' | json
show {run} --json=perhaps                   | --json must be true or false, got 'perhaps'
report --workdir={empty}                    | --workdir must be | '{empty}'
report --workdir={half}                     | --workdir must be | '{half}'
report --workdir={cut}                      | workdir | {cut}
report --workdir={run} --out={file}/r.html  | {file}/r.html
report --workdir={run} --out={empty}        | --out | {empty}
report --wrokdir=x                          | Unknown command line flag 'wrokdir' | workdir
report {run}                                | {run}
export --to=json                            | ID
export annealing                            | --to | optax
export annealing --to=tensorflow            | --to | 'tensorflow'
export annaeling --to=json --workdir={run}  | 'annaeling' | annealing
export g9 --to=json --workdir={empty}       | '{empty}'
export g9 --to=json --workdir={half}        | '{half}'
export {spec} --to=optax                    | {spec}: spec.ns_steps | 9
export annealing --to=json --out={file}     | '{file}' | --force
export annealing --to=json --out={file}/x   | '{file}/x'
replay                                      | card
replay {card} {card}                        | card
replay {empty}/nope.json                    | nope.json
replay {empty}                              | {empty} | regular file
replay {file}                               | {file}
replay {edited}                             | {edited} was changed after it was written
replay {card}                               | {card}
replay {card} --pairs=0                     | --pairs must be a positive integer, got '0'
replay {card} --pairs=x                     | --pairs must be a positive integer, got 'x'
replay {card} --pairs                       | Missing value for flag --pairs
replay {card} --pears=1                     | Unknown command line flag 'pears' | pairs
replay {card} --config.seed=1               | config.seed is not a field
VALIDATE                                    | SLOT
VALIDATE gate                               | SLOT
VALIDATE gate {spec} {spec}                 | SLOT
VALIDATE gtae {spec}                        | SLOT | 'gtae' | direction
VALIDATE gate {empty}/no.py                 | FILE | '{empty}/no.py'
VALIDATE gate {empty}                       | FILE | '{empty}'
VALIDATE gate {link}                        | FILE | '{link}' | link
VALIDATE gate {large}                       | FILE | '{large}' | 50,000
VALIDATE gate {binary}                      | FILE | '{binary}' | UTF-8
VALIDATE gate {spec} --out={file}           | --out | '{file}'
VALIDATE gate {spec} --isolation=some       | isolation | 'some'
VALIDATE gate {spec} --config=nope.py       | --config must be a file | 'nope.py'
VALIDATE gate {spec} --config.model.n_embd=1 | config.model.n_embd must be an integer | got 1
VALIDATE gate {spec} --uot=x                | Unknown command line flag 'uot' | out
"""
# Each name stands for several commands, which have further arguments besides those of the row.
GROUPS = {
    "CONFIG": {"search": [], "calibrate": [], "confirm": [], "compare": []},
    "TRAIN": {"search": TINY, "calibrate": TINY},
    "VALIDATE": {"-m nanoevolve_jax.codegen.validate": []},
    "compare": {"compare": TINY},
}


def cases():
    """Yields (command, arguments, parts of the error) of every row, one case per command."""
    for row in CASES.strip().splitlines():
        line, *parts = (part.strip() for part in row.split(" | "))
        name, *arguments = line.split()
        for command, more in GROUPS.get(name, {name: []}).items():
            tiny = TINY if name == "search" and "calibration" in line else more
            yield pytest.param(
                [*command.split(), *tiny, *arguments], parts, id=f"{command} {' '.join(arguments)}"
            )


@pytest.fixture(scope="module")
def places(tmp_path_factory, repository):
    """Returns paths of empty or damaged folders and files, and of valid ones for incorrect use."""
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
    """Returns the content of all places except the cache and locks, which commands may write."""
    return {
        path: path.read_bytes()
        for name, place in places.items()
        for path in (place.rglob("*") if place.is_dir() else [place])
        if name != "cache" and path.is_file() and path.name != ".lock"
    }


@pytest.mark.parametrize(("arguments", "parts"), cases())
def test_bad_input_ends_in_one_line_and_loses_nothing(shell, places, arguments, parts):
    before = content(places)
    line = [argument.format(**places) for argument in arguments]
    code, _, errors = shell(*line, folder=places["empty"])
    assert errors.startswith("error: ") and errors.count("\n") == 1, errors
    assert code == 2
    for part in parts:
        assert part.format(**places) in errors
    assert content(places) == before


@pytest.mark.parametrize("field", ["workdir", "data.cache_dir"])
def test_a_place_without_permission_is_named(places, repository, tmp_path, field):
    tmp_path.chmod(0o500)
    command = [sys.executable, "-m", "nanoevolve_jax.search"]
    if os.geteuid() == 0:  # permissions bind root only without these powers
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
