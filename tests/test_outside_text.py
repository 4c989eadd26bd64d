"""Text from outside is printed literally, and terminal problems never end a finished run."""

import ast
import io
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from histories import family, make_columns, write_folder

from nanoevolve_jax.command import NO_READER
from nanoevolve_jax.escaping import visible, visible_lines
from nanoevolve_jax.execution.engine import Progress
from nanoevolve_jax.terminal.console import Console
from nanoevolve_jax.terminal.display import DataDisplay, Display
from nanoevolve_jax.terminal.streams import SafeStream

ROOT = Path(__file__).parent.parent
# Only these modules may write to a terminal. `remote` runs before its folder is checked, so it
# imports no other module.
WRITERS = ("terminal/streams.py", "terminal/console.py", "deployment/remote.py")
SOURCES = [
    path
    for folder in ("nanoevolve_jax", "benchmarks", "model", "data", "configs")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if not path.as_posix().endswith(WRITERS)
]


def raw_output(tree):
    """Yields (line, name) of everything in a module that could print without the console."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id="print"):
                yield node.lineno, "print"
            case ast.Attribute(attr="from_markup" | "from_ansi"):
                yield node.lineno, node.attr
            case ast.Attribute(value=ast.Name(id="rich")):
                yield node.lineno, f"rich.{node.attr}"
            case ast.Attribute(
                value=ast.Attribute(value=ast.Name(id="sys"), attr="stdout" | "stderr"),
                attr="write" | "writelines" | "buffer",
            ):
                yield node.lineno, f"sys.{node.value.attr}.{node.attr}"
            case ast.ImportFrom(module="rich.console" | "rich.text" | "rich.markup" | "rich"):
                for name in node.names:
                    if name.name in ("Console", "Text", "print", "escape", "render"):
                        yield node.lineno, name.name
            case ast.Call(func=ast.Name(id="TextColumn")):
                if not any(keyword.arg == "markup" for keyword in node.keywords):
                    yield node.lineno, "TextColumn with markup"


def test_only_the_console_writes_to_a_terminal():
    found = {
        path.relative_to(ROOT): list(raw_output(ast.parse(path.read_text()))) for path in SOURCES
    }
    assert not {path: uses for path, uses in found.items() if uses}


HOSTILE = {
    "\x1b[2J": r"\x1b[2J",
    "\x1b]0;title\x07": r"\x1b]0;title\x07",
    "\x1b]8;;http://x\x1b\\here": r"\x1b]8;;http://x\x1b\here",
    "a\rb": r"a\rb",
    "a\bb": r"a\x08b",
    "\x7f": r"\x7f",
    "\x9b31m": r"\x9b31m",
    "\u202eabc\u2066": r"\u202eabc\u2066",
    "a\u200bb\ufeff\u2060\u00ad": r"a\u200bb\ufeff\u2060\xad",
    "\u2028\u2029\x85": r"\u2028\u2029\x85",
    "\ud800": r"\ud800",
    "\U000e0041\ufe0f\u3164": r"\U000e0041\ufe0f\u3164",
    "one\ntwo\tthree": r"one\ntwo\tthree",
    "[bold]x[/bold] [/x] :smile:": "[bold]x[/bold] [/x] :smile:",
    "Grüße, 世界 ▁█ \U0001f600": "Grüße, 世界 ▁█ \U0001f600",
}


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_every_character_can_be_seen(text):
    assert visible(text) == HOSTILE[text]
    assert visible_lines(text).replace("\n", r"\n").replace("\t", r"\t") == HOSTILE[text]


EVIL = "\x1b[2J[/x][bold]b[/bold]:smile:\u202e\u200b\x9b31m\x07\rnew\nerror: line<b>"
SEEN = visible(EVIL)
CONTROLS = set("\x1b\x07\r\x9b\u202e\u200b")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns a run folder that contains hostile text and has a hostile name."""
    records = family()
    records[1] = records[1]._replace(change=EVIL, operator=EVIL)
    records[2] = records[2]._replace(change=EVIL, operator=EVIL)
    place = tmp_path_factory.mktemp("outside") / "run[/x]:smile:\x1b[31m"
    columns = make_columns(np.linspace(0.1, 0.9, 6), loss=np.ones(6), grad_norm=np.ones(6))
    columns |= {"validation_step": np.array([0, 6]), "validation_bpb": np.array([3.0, 2.0])}
    return write_folder(place, records, dict.fromkeys(("nanochat", "annealing"), columns))


def without_space(text):
    """Returns a text without white space, because narrow columns break words."""
    return "".join(text.split())


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "{folder}"),
        ("show", "{folder}", "--front"),
        ("show", "{folder}", "--json"),
        ("show", "{folder}", "g001c00"),
        ("show", "{folder}", "--diff", "nanochat", "annealing"),
        ("show", "{folder}", EVIL),
        ("show", EVIL),
        ("show", "{folder}", f"--{EVIL}"),
        ("compare", EVIL, "nanochat"),
        ("compare", "nanochat", f"{{folder}}:{EVIL}"),
        ("search", f"--config={EVIL}"),
        ("search", f"--config.data.corpus={EVIL}"),
        ("search", f"--config.calibration={EVIL}"),
        ("confirm", "--config.workdir={folder}"),
        ("export", EVIL, "--workdir={folder}", "--to=json"),
        ("export", "annealing", f"--to={EVIL}"),
        ("replay", "{folder}/[bold]"),
        ("report", "--workdir={folder}", "--out={folder}/\x1b[1m/x"),
        ("codegen.propose", EVIL),
        ("codegen.propose", "gate", f"--provider={EVIL}"),
        ("codegen.validate", "gate", EVIL),
        ("codegen.ensemble", EVIL),
        ("codegen.trace", EVIL),
        ("codegen.deploy", EVIL),
        (EVIL,),
    ],
    ids=lambda arguments: ascii(" ".join(arguments))[:60],
)
def test_commands_show_outside_text_as_text(shell, folder, tmp_path, arguments):
    given = [argument.replace("{folder}", str(folder)) for argument in arguments]
    code, output, errors = shell(*given, folder=tmp_path)
    said = output + errors
    assert not CONTROLS & set(said)
    assert code in (0, 2) and "Traceback" not in said
    assert errors.count("\n") == (code != 0) and not errors.startswith("error: line")


def test_a_page_holds_the_text_whole(shell, folder, tmp_path):
    pages = [shell("show", folder, *more, folder=tmp_path).output for more in ((), ("g001c00",))]
    for page in pages:
        assert without_space(SEEN) in without_space(page)
    assert str(folder)[-12:-5] in pages[0]  # Rich would interpret this as a tag and an emoji


@pytest.mark.parametrize("columns", ["", "0", "-1", "1", "abc", "\u00b2", "9" * 20, "9" * 5000])
def test_a_width_that_no_terminal_has_loses_nothing(shell, folder, tmp_path, columns):
    code, page, errors = shell("show", folder, folder=tmp_path, environment={"COLUMNS": columns})
    assert (code, errors) == (0, "")
    for figure in ("g001c00", "annealing", "1.9910", "+0.0090", "rejected"):
        assert figure in page
    assert 60 <= max(map(len, page.splitlines())) <= 80


@pytest.mark.parametrize(
    ("encoding", "environment"),
    [
        ("ascii", {}),
        ("latin-1", {}),
        ("utf-8", {"NO_COLOR": "1", "TERM": "dumb"}),
        ("ascii", {"FORCE_COLOR": "1", "TERM": "xterm"}),
    ],
)
def test_any_encoding_and_terminal_gets_the_page(shell, folder, tmp_path, encoding, environment):
    code, page, errors = shell(
        "show", folder, folder=tmp_path, encoding=encoding, environment=environment
    )
    assert (code, errors) == (0, "")
    assert "g001c00" in page and ("\x1b" in page) == ("FORCE_COLOR" in environment)
    assert encoding == "utf-8" or page.isascii()


STREAMS = [
    {1: "closed"},
    {2: "closed"},
    {0: "closed"},
    {0: "closed", 1: "closed", 2: "closed"},
    {1: "gone"},
    {1: "gone", 2: "gone"},
    {1: "full"},
]


@pytest.mark.parametrize("streams", STREAMS, ids=str)
def test_only_a_command_that_just_prints_minds_a_lost_output(shell, folder, tmp_path, streams):
    code, output, errors = shell("show", folder, folder=tmp_path, streams=streams)
    assert code == {"gone": NO_READER, "full": 2}.get(streams.get(1), 0)
    assert bool(output) == (1 not in streams)
    wanted = "error: the standard output cannot be written (No space left on device)\n"
    assert errors == (wanted if streams.get(1) == "full" else "")
    out = tmp_path / "policy.json"
    words = ("export", "annealing", f"--out={out}", "--to=json")
    assert shell(*words, folder=tmp_path, streams=streams).code == 0
    assert out.stat().st_size


def test_the_live_picture_shows_names_as_text():
    console = Console(file=io.StringIO(), force_terminal=True, width=200, height=30, _environ={})
    with Display(console, total_steps=100, batch_tokens=1.0, task=EVIL) as display:
        display.log(EVIL)
        losses = np.ones((1, 25), np.float32)
        display.on_progress(Progress(1, 50, 100, losses, np.ones(1), (EVIL,), 0))
        display.note(EVIL)
    with DataDisplay(console) as display:
        display.on_progress(EVIL, 1, 2)
    shown = console.file.getvalue()
    assert not (CONTROLS - set("\x1b\r")) & set(shown) and "\x1b[2J" not in shown
    assert shown.count(SEEN[:40]) >= 3


@pytest.mark.parametrize(
    "environment", [{}, {"FORCE_COLOR": "1"}, {"TTY_INTERACTIVE": "0"}], ids=str
)
def test_a_log_gets_lines_and_no_live_picture(tmp_path, environment):
    with open(tmp_path / "log", "w+") as log:
        console = Console(file=log, _environ=environment | {"TERM": "xterm"})
        with Display(console, total_steps=100, batch_tokens=1.0, task="search") as display:
            display.log("a line")
            display.note("a note")
        with DataDisplay(console) as display:
            display.on_progress("packing", 1, 2)
        log.seek(0)
        assert log.read() == "a line\npacking\n"


def test_libraries_and_tracebacks_are_shown_as_text_too(shell, tmp_path):
    code, output, errors = shell("-m", "loud", folder=tmp_path)
    seen = r"\x1b[2J\x9b\u202e\r"
    assert code == 1 and output == f"1 {seen}red\n"
    assert [f"{number} {seen}" in errors for number in (2, 3, 4, 5)] == [True] * 4
    assert not CONTROLS & set(output + errors)


def test_a_signal_handler_may_print_while_a_write_waits():
    reader, writer = os.pipe()
    stream = SafeStream(writer, "utf-8")
    before = signal.signal(signal.SIGALRM, lambda *_: stream.write("stop\n"))
    drained = []

    def drain():
        time.sleep(0.1)
        while not drained or drained[-1]:
            drained.append(os.read(reader, 1 << 16))

    thread = threading.Thread(target=drain)
    thread.start()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        stream.write("x" * (1 << 18))  # more than a pipe holds
    finally:
        signal.signal(signal.SIGALRM, before)
        os.close(writer)
        thread.join()
        os.close(reader)
    found = b"".join(drained)
    assert found.count(b"x") == 1 << 18 and found.count(b"stop\n") == 1
