"""Profiles: those of the package are complete, and a mistake in one is named in one line."""

import tomllib

import pytest
from scripted_mutator import profile, provider

from nanoevolve_jax.codegen.mutators import providers
from nanoevolve_jax.codegen.mutators.providers import FILE, ProviderError, from_json, load, to_json

API = {
    "kind": '"api"',
    "model": '"m"',
    "base_url": '"http://localhost/v1"',
    "dollars_in": "1.0",
    "dollars_out": "2",
    "max_output_tokens": "10",
}
COMMAND = {name: value for name, value in API.items() if name != "base_url"} | {
    "kind": '"command"',
    "command": '["agent", "{prompt_file}"]',
}


def write(tmp_path, table, **changed):
    values = table | changed
    path = tmp_path / "mine.toml"
    lines = [f"{name} = {value}" for name, value in values.items() if value is not None]
    path.write_text("[mine]\n" + "\n".join(lines) + "\n")
    return path


def test_the_profiles_of_the_package():
    known = load()
    assert {"openai", "openrouter", "vllm", "ollama"} <= known.keys()
    assert {"codex", "gemini", "aider", "opencode", "claude"} <= known.keys()
    for one in known.values():
        assert from_json(to_json(one)) == one
        hosted = one.kind == "command" or "localhost" not in one.base_url
        assert (one.dollars_in > 0 and one.dollars_out > 0) == hosted


def test_they_are_found_where_no_such_folder_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load(FILE) == load()
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "providers.toml").write_text(write(tmp_path, API).read_text())
    assert list(load(FILE)) == ["mine"]  # a file on disk goes first


def test_a_profile_may_hold_every_field(tmp_path):
    fields = {"temperature": "0.5", "limit_field": '"max_tokens"', "retries": "0", "env": '["A"]'}
    found = load(write(tmp_path, API, extra_body="{reasoning = {effort = 'low'}}", **fields))
    assert found["mine"].extra_body == {"reasoning": {"effort": "low"}}
    assert (found["mine"].env, found["mine"].temperature) == (("A",), 0.5)
    assert load(write(tmp_path, COMMAND))["mine"].retries == 0


BAD = [
    (API, {"kind": '"http"'}, "mine.kind is 'http'; allowed: api or command"),
    (API, {"kind": None}, "mine.kind is missing; allowed: api or command"),
    (API, {"model": '""'}, "mine.model is ''; allowed: text that is not empty"),
    (API, {"base_url": None}, "mine.base_url is missing"),
    (API, {"dollars_in": None}, "mine.dollars_in is missing; allowed: a number from 0 to"),
    (API, {"dollars_in": "-1"}, "mine.dollars_in is -1; allowed: a number from 0 to"),
    (API, {"dollars_in": "nan"}, "mine.dollars_in is nan; allowed: a number"),
    (API, {"dollars_in": "true"}, "mine.dollars_in is True; allowed: a number"),
    (API, {"max_output_tokens": "1.5"}, "max_output_tokens is 1.5; allowed: an integer from 1"),
    (API, {"timeout_seconds": "0"}, "timeout_seconds is 0; allowed: a number from 0.1"),
    (API, {"retries": "99"}, "mine.retries is 99; allowed: an integer from 0 to 20"),
    (API, {"limit_field": '"n"'}, "allowed: max_completion_tokens or max_tokens"),
    (API, {"env": "[1]"}, "mine.env is [1]; allowed: a list of texts"),
    (API, {"extra_body": "1"}, "mine.extra_body is 1; allowed: a table"),
    (API, {"colour": "1"}, "mine.colour is 1, but there is no such field; allowed: kind, model"),
    (API, {"command": '["a"]'}, "mine.command is ['a'], but there is no such field"),
    (COMMAND, {"base_url": '"x"'}, "mine.base_url is 'x', but there is no such field"),
    (COMMAND, {"command": "[]"}, "mine.command is []; allowed: a list of texts"),
    (COMMAND, {"command": '["a", "{promptfile}"]'}, "allowed in braces: prompt_file, answer_file"),
    (
        COMMAND,
        {"command": '["a"]'},
        "which is not told the prompt; allowed: one with {prompt_file}",
    ),
    (COMMAND, {"prompt_on_stdin": '"yes"'}, "allowed: true or false"),
]


@pytest.mark.parametrize(("table", "changed", "words"), BAD, ids=range(len(BAD)))
def test_mistakes_are_named(tmp_path, table, changed, words):
    path = write(tmp_path, table, **changed)
    with pytest.raises(ProviderError) as error:
        load(path)
    assert str(error.value).startswith(f"{path}: mine")
    assert words in str(error.value) and "\n" not in str(error.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(ProviderError, match=r"allowed: a TOML file, such as configs/providers"):
        load(tmp_path / "none.toml")
    for text, words in [
        ("a = [", "read as TOML"),
        ("", "no profile"),
        ("a = 1", "a is 1; allowed"),
    ]:
        (tmp_path / "bad.toml").write_text(text)
        with pytest.raises(ProviderError, match=words):
            load(tmp_path / "bad.toml")


def test_what_a_provider_lacks_is_said(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    known = load()
    assert "variable OPENAI_API_KEY is not set" in providers.missing(known["openai"])
    assert "program nowhere-to-be is not installed" in providers.missing(
        provider(command=("nowhere-to-be",))
    )
    monkeypatch.setattr(providers.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'nanoevolve-jax[codegen]'" in providers.missing(known["ollama"])
    assert providers.missing(provider()) is None
    with pytest.raises(ProviderError, match="provider is 'x'; allowed: openai, openrouter"):
        providers.chosen(known, "x")


def test_braces_that_name_no_place_are_the_commands_own():
    places = {"prompt_file": "P", "model": "M"}
    filled = providers.filled(('{"a": {}}', "{prompt_file}:{model}", "{}"), places)
    assert filled == ['{"a": {}}', "P:M", "{}"]


def test_the_scripted_profile_is_the_scripted_provider(tmp_path):
    (tmp_path / "p.toml").write_text(profile())
    assert load(tmp_path / "p.toml")["scripted"] == provider()
    assert tomllib.loads(profile())
