"""A call is made once, whatever dies, and its books are those of the endpoint."""

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from openai_server import Reply, Server, tokens

from nanoevolve_jax.codegen.mutators import by_command
from nanoevolve_jax.codegen.mutators.answers import read_answer
from nanoevolve_jax.codegen.mutators.ask import LOST, ask
from nanoevolve_jax.codegen.mutators.attempts import call
from nanoevolve_jax.codegen.mutators.budget import Spent, books, worst_attempt, worst_call
from nanoevolve_jax.codegen.mutators.providers import Provider, ProviderError
from nanoevolve_jax.codegen.mutators.requests import Request, write_request

PROMPT = "Proposal 3, try 1: rewrite the function `gate`.\n"
KEY = "sk-a-very-secret-key"
GOOD = Reply("an answer")


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("TEST_KEY", KEY)
    monkeypatch.setenv("UNRELATED_SECRET", "another-secret")


def api(server, **fields) -> Provider:
    values = {
        "name": "local",
        "kind": "api",
        "model": "small",
        "base_url": server.url,
        "key_env": "TEST_KEY",
        "dollars_in": 2.0,
        "dollars_out": 10.0,
        "max_output_tokens": 500,
        "retries": 2,
        "backoff_seconds": 0.01,
        "timeout_seconds": 20.0,
    }
    return Provider(**values | fields)


def command(*program: str, **fields) -> Provider:
    values = {
        "name": "agent",
        "kind": "command",
        "model": "small",
        "command": program,
        "dollars_in": 2.0,
        "dollars_out": 10.0,
        "max_output_tokens": 500,
        "retries": 0,
        "timeout_seconds": 20.0,
    }
    return Provider(**values | fields)


def python(code: str, *arguments: str, **fields) -> Provider:
    return command(sys.executable, "-c", code, *arguments, **fields)


def replies(*sequence):
    """A script that gives these in turn, the last one for ever."""
    return lambda proposal, number, attempt: sequence[min(attempt, len(sequence)) - 1]


def test_an_answer_costs_what_the_endpoint_says(tmp_path):
    with Server(replies(GOOD)) as server:
        provider = api(server, temperature=0.5, extra_body={"seed": 1})
        answer = ask(provider, PROMPT, tmp_path)
    assert (answer.text, answer.failure, answer.requests, answer.estimated) == (
        "an answer",
        None,
        1,
        0,
    )
    used = tokens(PROMPT), tokens("an answer")
    assert (answer.input_tokens, answer.output_tokens) == used
    assert answer.dollars == pytest.approx((2.0 * used[0] + 10.0 * used[1]) / 1e6, rel=1e-12)
    assert server.keys == [f"Bearer {KEY}"]
    body = server.bodies[0]
    assert (body["max_completion_tokens"], body["temperature"], body["seed"]) == (500, 0.5, 1)


def test_a_folder_is_asked_once(tmp_path):
    with Server(replies(GOOD)) as server:
        first = ask(api(server), PROMPT, tmp_path)
        assert ask(api(server, name="other"), "another prompt", tmp_path) == first
    assert server.paid.total() == 1


def test_a_folder_that_somebody_wrote_does_not_choose_who_is_asked(tmp_path):
    mark = tmp_path / "it ran"
    folder = tmp_path / "call"
    folder.mkdir()
    write_request(folder, Request(python(f"open({str(mark)!r}, 'w')"), PROMPT))
    answer = ask(python("print(input())", prompt_on_stdin=True), "another prompt", folder)
    assert answer.text.strip() in PROMPT and not mark.exists()


def test_threads_share_one_call(tmp_path):
    with Server(replies(GOOD._replace(seconds=0.5))) as server, ThreadPoolExecutor(6) as pool:
        provider = api(server)
        found = list(pool.map(lambda _: ask(provider, PROMPT, tmp_path), range(6)))
    assert len(set(found)) == 1 and found[0].failure is None
    assert server.requests.total() == 1


@pytest.mark.parametrize("fault", [429, 500, 503, 502], ids=str)
def test_faults_that_pass_are_tried_again(tmp_path, fault):
    with Server(replies(Reply(status=fault, retry_after="0.01"), GOOD)) as server:
        answer = ask(api(server), PROMPT, tmp_path)
    assert answer.failure is None and answer.text == "an answer"
    assert server.requests.total() == 2
    perhaps_paid = fault == 502  # a gateway's: whoever it asked may have worked
    assert answer.requests == 1 + perhaps_paid
    assert answer.estimated == perhaps_paid


def test_a_fault_that_stays_is_a_failure_and_costs_nothing(tmp_path):
    with Server(replies(Reply(status=429))) as server:
        answer = ask(api(server), PROMPT, tmp_path)
    assert server.requests.total() == 3
    assert "status 429" in answer.failure and (answer.requests, answer.dollars) == (0, 0.0)


def test_bad_requests_are_not_tried_again(tmp_path):
    with Server(replies(Reply(f"bad key {KEY}", status=401))) as server:
        answer = ask(api(server), PROMPT, tmp_path)
    assert server.requests.total() == 1 and "status 401" in answer.failure


def test_an_endpoint_that_asks_for_too_much_patience_is_left(tmp_path):
    with Server(replies(Reply(status=429, retry_after="7200"))) as server:
        answer = ask(api(server), PROMPT, tmp_path)
    assert server.requests.total() == 1 and "7200 s of patience" in answer.failure


@pytest.mark.parametrize("slow", [Reply(seconds=60.0), Reply(trickle=True)], ids=["hang", "drip"])
def test_what_takes_too_long_ends_and_counts_at_its_worst(tmp_path, slow):
    with Server(replies(slow)) as server:
        provider = api(server, timeout_seconds=0.5, retries=1)
        answer = ask(provider, PROMPT, tmp_path)
    assert "no answer within 0.5 s" in answer.failure
    worst = worst_attempt(provider, PROMPT)
    assert answer.requests == answer.estimated == server.paid.total() == 2
    assert (answer.input_tokens, answer.output_tokens) == (2 * worst[0], 2 * worst[1])
    assert answer.dollars == pytest.approx(2 * provider.dollars(*worst))
    assert answer.seconds < 5.0


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(body=b"<html>busy</html>"), "cannot be read"),
        (Reply(body=b"[]"), "no text"),
        (Reply(body=b'{"choices": 3}'), "no text"),
        (Reply(body=b'{"choices": []}'), "no text"),
        (Reply(""), "no text: finish_reason 'stop'"),
    ],
)
def test_replies_that_are_no_answer_are_paid_and_not_tried_again(tmp_path, reply, words):
    with Server(replies(reply)) as server:
        answer = ask(api(server), PROMPT, tmp_path)
    assert words in answer.failure
    assert answer.requests == server.paid.total() == 1


def test_tokens_that_nobody_reports_count_as_the_most_possible(tmp_path):
    with Server(replies(GOOD._replace(usage=False))) as server:
        provider = api(server)
        answer = ask(provider, PROMPT, tmp_path)
    assert answer.failure is None and answer.estimated == 1
    assert (answer.input_tokens, answer.output_tokens) == worst_attempt(provider, PROMPT)


def test_an_endpoint_that_is_not_there_costs_nothing(tmp_path):
    with Server(replies(GOOD)) as server:
        pass
    answer = ask(api(server), PROMPT, tmp_path)
    assert "connection to" in answer.failure and answer.requests == 0


def test_a_connection_that_is_cut_may_have_been_paid(tmp_path):
    with Server(replies(Reply(cut=True), GOOD)) as server:
        answer = ask(api(server), PROMPT, tmp_path)
    assert answer.failure is None
    assert (answer.requests, answer.estimated) == (2, 1) and server.paid.total() == 2


def test_keys_reach_no_file_and_no_other_process(tmp_path):
    leak = "import os; print(dict(os.environ)); print(os.environ['TEST_KEY'])"
    with Server(replies(Reply(f"the key is {KEY}"))) as server:
        ask(api(server), PROMPT, tmp_path / "api")
    for name, code in [
        ("command", leak),
        ("fails", f"{leak}; raise SystemExit(os.environ['TEST_KEY'])"),
    ]:
        ask(python(code, "{prompt_file}", key_env="TEST_KEY"), PROMPT, tmp_path / name)
    printed = read_answer(tmp_path / "command").text
    seen = set(eval(printed.splitlines()[0]))  # of this test's own command
    assert seen - {"LC_CTYPE", "__CF_USER_TEXT_ENCODING"} == {"PATH", "HOME", "TEST_KEY"} & seen
    assert "TEST_KEY" in seen and "[secret]" in printed
    assert "[secret]" in read_answer(tmp_path / "fails").failure
    assert "[secret]" in read_answer(tmp_path / "api").text
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes()


@pytest.mark.parametrize("place", ["user:{}@", "{}@"])
def test_a_profile_with_credentials_in_its_url_is_refused_before_anything_is_written(
    tmp_path, place
):
    with Server(replies(GOOD)) as server:
        url = server.url.replace("//", "//" + place.format(KEY))
        with pytest.raises(ProviderError, match="base_url must be") as error:
            ask(api(server, base_url=url), PROMPT, tmp_path / "call")
    assert KEY not in str(error.value) and not (tmp_path / "call").exists()
    assert server.requests.total() == 0
    write_request(tmp_path, Request(api(server, base_url=url), PROMPT))
    assert KEY not in (tmp_path / "request.json").read_text()


def test_credentials_in_what_a_call_says_are_redacted(tmp_path):
    said = "cannot reach http://user:hunter2hunter2@proxy/v1?api_key=hunter2hunter2"
    answer = ask(python(f"raise SystemExit({said!r})", prompt_on_stdin=True), PROMPT, tmp_path)
    assert "cannot reach http://[secret]@proxy/v1?api_key=[secret]" in answer.failure
    assert "hunter2" not in (tmp_path / "answer.json").read_text()


def test_each_line_of_a_key_is_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_KEY", "first-line-of-it\nsecond-line-of-it\n")
    code = "import os; raise SystemExit(os.environ['TEST_KEY'])"
    answer = ask(python(code, prompt_on_stdin=True, key_env="TEST_KEY"), PROMPT, tmp_path)
    assert answer.failure.endswith("code 1: [secret]")


def test_a_command_that_crashes_leaves_no_core_dump(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    if hard == 0:
        pytest.skip("no core dumps are possible here")
    mark = tmp_path / "limits"
    code = (
        "import os, pathlib, resource, sys; limits = resource.getrlimit(resource.RLIMIT_CORE);"
        "pathlib.Path(sys.argv[1]).write_text(str(limits)); os.abort()"
    )
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    try:
        provider = python(code, str(mark), prompt_on_stdin=True)
        attempt = by_command.asker(provider, PROMPT, {"PATH": os.environ["PATH"]})()
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
    assert f"code {-signal.SIGABRT}" in attempt.failure and mark.read_text() == "(0, 0)"


def test_an_answer_can_always_be_written(tmp_path):
    with Server(replies(Reply("half a character: \ud83d"))) as server:
        assert ask(api(server), PROMPT, tmp_path).text == "half a character: ?"


def test_without_its_key_nothing_is_sent(tmp_path, monkeypatch):
    monkeypatch.delenv("TEST_KEY")
    with Server(replies(GOOD)) as server, pytest.raises(ProviderError, match="TEST_KEY is not set"):
        ask(api(server), PROMPT, tmp_path)
    assert server.requests.total() == 0
    monkeypatch.setenv("TEST_KEY", KEY)  # and the folder is as good as new
    with Server(replies(GOOD)) as server:
        write_request(tmp_path, Request(api(server), PROMPT))
        assert ask(api(server), PROMPT, tmp_path).failure is None


def test_a_command_gets_its_prompt_and_gives_its_answer(tmp_path):
    code = (
        "import sys, pathlib, os; p, a, f = sys.argv[1:]; t = pathlib.Path(p).read_text();"
        "assert sys.stdin.read() == t and os.listdir(f) == ['prompt.txt'];"
        "pathlib.Path(a).write_text('told ' + t); print('noise')"
    )
    places = ("{prompt_file}", "{answer_file}", "{folder}")
    answer = ask(python(code, *places, prompt_on_stdin=True), PROMPT, tmp_path)
    assert (answer.text, answer.failure) == (f"told {PROMPT}", None)


def test_usage_is_read_from_json_lines(tmp_path):
    lines = [
        {"type": "text", "part": {"text": "one"}},
        {"type": "done", "part": {"tokens": {"a": {"in": 30}, "b": {"in": 12}}, "cost": 0.25}},
        {"type": "text", "part": {"text": "two\u2028\x85"}},
        {"type": "done", "part": {"tokens": {"c": {"in": 1}, "out": 5}, "cost": 0.5}},
    ]
    printed = "warming up\n" + "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    provider = python(
        f"import sys; sys.stdout.buffer.write({printed!r}.encode())",
        prompt_on_stdin=True,
        text_at=("part.text",),
        input_tokens_at=("part.tokens.*.in",),
        output_tokens_at=("part.tokens.out",),
        dollars_at=("part.cost",),
    )
    answer = ask(provider, PROMPT, tmp_path)
    assert answer.text == "one\ntwo\u2028\x85"
    assert (answer.input_tokens, answer.output_tokens) == (43, 5)
    assert (answer.dollars, answer.estimated) == (0.75, 0)


@pytest.mark.parametrize(
    ("inputs", "outputs", "dollars", "counted"),
    [
        ("30", "5", "0.25", (30, 5, 0.25)),
        ("0", "0", "0", (None, None, None)),
        ("30", "0", "0.25", (30, None, 0.25)),
        ("-1", "5", "-1", (None, 5, None)),
        ("NaN", "Infinity", "NaN", (None, None, None)),
        ('"30"', "true", '"free"', (None, None, None)),
        ("null", "[5]", "null", (None, None, None)),
        ("1e300", "1" + "0" * 400, "Infinity", (None, None, None)),
    ],
)
def test_what_a_command_cannot_have_used_counts_as_the_most(inputs, outputs, dollars, counted):
    printed = f'{{"in": {inputs}, "out": {outputs}, "cost": {dollars}}}'
    provider = python(
        f"print({printed!r})",
        prompt_on_stdin=True,
        input_tokens_at=("in",),
        output_tokens_at=("out",),
        dollars_at=("cost",),
    )
    attempt = by_command.asker(provider, PROMPT, {})()
    answer = call(provider, PROMPT, lambda: attempt)
    worst = worst_attempt(provider, PROMPT)
    most = [w if c is None else c for c, w in zip(counted, worst, strict=False)]
    assert [answer.input_tokens, answer.output_tokens] == most
    price = provider.dollars(*most) if counted[2] is None else counted[2]
    assert answer.dollars == pytest.approx(price)


def test_a_command_that_is_killed_used_more_than_it_has_reported_yet(tmp_path):
    code = 'import time; print(\'{"in": 1, "out": 1}\', flush=True); time.sleep(60)'
    fields = {"input_tokens_at": ("in",), "output_tokens_at": ("out",), "timeout_seconds": 0.5}
    provider = python(code, prompt_on_stdin=True, **fields)
    attempt = by_command.asker(provider, PROMPT, {})()
    assert (attempt.input_tokens, attempt.output_tokens) == (None, None) and attempt.again


def test_a_command_that_hangs_is_killed_with_all_its_children(tmp_path):
    code = (
        "import subprocess, sys, time, pathlib;"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        "pathlib.Path(sys.argv[1]).write_text(str(p.pid)); time.sleep(60)"
    )
    child = tmp_path / "child"
    provider = python(code, str(child), prompt_on_stdin=True, timeout_seconds=1.0)
    answer = ask(provider, PROMPT, tmp_path / "call")
    assert "took longer than 1 s" in answer.failure and answer.estimated == 1
    assert _gone(int(child.read_text()))


def test_commands_that_fail_say_why(tmp_path):
    code = "import sys; sys.exit('first line\\nquota exceeded')"
    failed = ask(python(code, prompt_on_stdin=True), PROMPT, tmp_path / "1")
    assert "code 1: quota exceeded" in failed.failure and failed.requests == 1
    again = by_command.asker(python("raise SystemExit('busy')", prompt_on_stdin=True), PROMPT, {})()
    quota = by_command.asker(python(code, prompt_on_stdin=True), PROMPT, {})()
    assert again.again and not quota.again
    silent = ask(python("pass", prompt_on_stdin=True), PROMPT, tmp_path / "2")
    assert "gave no answer" in silent.failure


def _gone(process: int, seconds: float = 5.0) -> bool:
    for _ in range(int(seconds / 0.05)):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def _caller(provider: Provider, folder: Path) -> subprocess.Popen:
    """A process of its own that asks, to be killed."""
    request = folder.parent / "wanted"
    request.mkdir()
    write_request(request, Request(provider, PROMPT))
    code = (
        "import sys, pathlib; from nanoevolve_jax.codegen.mutators import ask, requests;"
        "wanted = requests.read_request(pathlib.Path(sys.argv[1]));"
        "ask.ask(*wanted, pathlib.Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, str(request), str(folder)]
    return subprocess.Popen(command, start_new_session=True)


def _until(condition, seconds: float = 20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _process_of(folder: Path) -> int:
    """The process of a call that is under way."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if b"nanoevolve_jax.codegen.mutators.ask" in words and str(folder).encode() in words:
                return int(entry.name)
    raise AssertionError("no process")


@pytest.mark.parametrize("moment", ["request", "started", "asked"])
def test_a_caller_killed_at_any_moment_pays_once(tmp_path, moment):
    folder = tmp_path / "call"
    with Server(replies(GOOD._replace(seconds=1.0))) as server:
        caller = _caller(api(server), folder)
        if moment == "asked":
            _until(lambda: server.requests.total() == 1)
        else:
            _until((folder / {"request": "request.json"}.get(moment, moment)).exists)
        os.killpg(caller.pid, signal.SIGKILL)  # as a terminal or a shell would
        caller.wait()
        answer = ask(api(server), PROMPT, folder)
        assert answer.failure is None and answer.text == "an answer"
        assert server.paid.total() == answer.requests == 1


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(12))
def test_a_caller_killed_whenever_pays_once(tmp_path, moment):
    folder = tmp_path / "call"
    with Server(replies(GOOD._replace(seconds=0.3))) as server:
        caller = _caller(api(server), folder)
        _until(folder.exists)
        time.sleep(moment * 0.1)
        os.killpg(caller.pid, signal.SIGKILL)
        caller.wait()
        answer = ask(api(server), PROMPT, folder)
        assert answer.failure is None and answer.text == "an answer"
        assert server.paid.total() == answer.requests == 1


def test_a_call_whose_own_process_was_killed_is_lost_and_not_made_again(tmp_path):
    run = tmp_path / "run"
    folder = run / "proposals" / "0003" / "try-1"
    with Server(replies(GOOD._replace(seconds=30.0))) as server, ThreadPoolExecutor(1) as pool:
        provider = api(server)
        waiting = pool.submit(ask, provider, PROMPT, folder)
        _until(lambda: server.requests.total() == 1)
        worst = worst_call(provider, PROMPT)
        assert books(run) == (Spent(), worst)
        process = _process_of(folder)
        with contextlib.suppress(PermissionError):  # of root alone
            assert b"another-secret" not in Path(f"/proc/{process}/environ").read_bytes()
        limits = Path(f"/proc/{process}/limits").read_text()
        assert re.search(r"Max core file size +0 +0 ", limits)
        os.kill(process, signal.SIGKILL)
        answer = waiting.result(20)
        assert answer.failure == LOST
        assert ask(provider, PROMPT, folder) == answer
        assert server.requests.total() == 1
    spent, reserved = books(run)
    assert spent == worst and reserved == Spent()


def test_a_command_dies_with_the_process_of_its_call(tmp_path):
    code = (
        "import os, pathlib, sys, time;"
        "pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(60)"
    )
    mark, folder = tmp_path / "mark", tmp_path / "call"
    with ThreadPoolExecutor(1) as pool:
        provider = python(code, str(mark), prompt_on_stdin=True)
        waiting = pool.submit(ask, provider, PROMPT, folder)
        _until(lambda: mark.exists() and mark.read_text())
        os.kill(_process_of(folder), signal.SIGKILL)
        assert waiting.result(20).failure == LOST
    assert _gone(int(mark.read_text()))
