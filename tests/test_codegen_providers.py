"""Profiles: those of the package are complete, and a mistake in one is named in one line."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_mutator import profile, provider

from nanoevolve_jax.codegen.mutators import providers
from nanoevolve_jax.codegen.mutators.credentials import redacted
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
    (API, {"env": "[1]"}, "mine.env must be a list of names of environment variables"),
    (API, {"extra_body": "1"}, "mine.extra_body must be a table without keys"),
    (API, {"colour": "1"}, "mine.colour is not a field of a provider of this kind; allowed: kind"),
    (API, {"command": '["a"]'}, "mine.command is not a field"),
    (COMMAND, {"base_url": '"x"'}, "mine.base_url is not a field"),
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


SECRET = "sk-4f9a8b7c6d5e"
KEPT = [
    *(
        (API, {"base_url": f'"{url}"'}, "mine.base_url must be an http:// or https:// URL without")
        for url in (
            f"https://user:{SECRET}@host/v1",
            f"https://{SECRET}@host/v1",
            f"https://host/v1?key={SECRET}",
            f"https://host/v1?{SECRET}",
            f"https://host/v1#{SECRET}",
            f"https://user:a/{SECRET}@host/v1",
            f"user:{SECRET}@host/v1",
            f"ftp://host/{SECRET}",
            f"http://host:{SECRET}/v1",
            f"http:///{SECRET}",
            f"http://[{SECRET}/v1",
            f"http://host/v1 {SECRET}",
        )
    ),
    (API, {"key_env": f'"{SECRET}"'}, "mine.key_env must be the name of an environment variable"),
    (API, {"env": f'["A", "{SECRET}"]'}, "mine.env must be a list of names"),
    (API, {"api_key": f'"{SECRET}"'}, "mine.api_key is not a field"),
    (API, {"extra_body": f'{{api_key = "{SECRET}"}}'}, "mine.extra_body must be a table without"),
    (API, {"extra_body": f'{{a = [{{Authorization = "{SECRET}"}}]}}'}, "a table without keys"),
    (COMMAND, {"command": f'["a", "{{prompt_file}}", "--api-key", "{SECRET}"]'}, "hold no key"),
    (COMMAND, {"command": f'["a", "{{prompt_file}}", "--token={SECRET}"]'}, "hold no key"),
]


@pytest.mark.parametrize(("table", "changed", "words"), KEPT, ids=range(len(KEPT)))
def test_keys_in_a_profile_are_refused_and_not_repeated(tmp_path, table, changed, words):
    with pytest.raises(ProviderError) as error:
        load(write(tmp_path, table, **changed))
    message = str(error.value)
    assert words in message and SECRET not in message and "\n" not in message


@pytest.mark.parametrize(
    "url",
    ["http://localhost:8000/v1", "https://a.b/v1/", "http://[::1]:80/v1", "HTTPS://10.0.0.7/x/y"],
)
def test_urls_without_keys_are_accepted(tmp_path, url):
    assert load(write(tmp_path, API, base_url=f'"{url}"'))["mine"].base_url == url


def test_a_limit_of_tokens_is_not_taken_for_a_key(tmp_path):
    table = "{max_tokens = 5, logit_bias = {key_words = 1}, reasoning = {max_tokens = 2}}"
    assert load(write(tmp_path, API, extra_body=table))["mine"].extra_body["max_tokens"] == 5


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_what_is_redacted_holds_no_credentials_of_urls(name):
    user = "".join(name.split()) or "u"
    for character in "\"'<>&)]":
        user = user.replace(character, "")
    text = (
        f"GET https://{user}:{SECRET}@host/v1?a=1&api_key={SECRET} Authorization: Bearer {SECRET}"
    )
    assert SECRET not in redacted(f"{text}, {text}") and "//[secret]@host/v1?a=1" in redacted(text)


def test_files_that_are_none(tmp_path):
    with pytest.raises(ProviderError, match=r"allowed: a TOML file, such as configs/providers"):
        load(tmp_path / "none.toml")
    for text, words in [
        ("a = [", "read as TOML"),
        ("", "no profile"),
        ("a = 1", "a must be in a table; allowed: one table per provider"),
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
