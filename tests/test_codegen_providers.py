"""Provider profiles: packaged ones are complete, and a mistake is named in one line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_mutator import provider

from nanoevolve_jax.codegen.mutators import providers
from nanoevolve_jax.codegen.mutators.credentials import redacted
from nanoevolve_jax.codegen.mutators.providers import (
    FILE,
    Command,
    ProviderError,
    from_json,
    load,
    to_json,
)

COMMON = {
    "model": '"m"',
    "dollars_in": "1.0",
    "dollars_out": "2",
    "max_output_tokens": "10",
}
API = COMMON | {"kind": '"api"', "base_url": '"http://localhost/v1"'}
COMMAND = COMMON | {"kind": '"command"', "command": '["agent", "{prompt_file}"]'}


def write(tmp_path, table, **changed):
    path = tmp_path / "mine.toml"
    lines = [f"{name} = {value}" for name, value in (table | changed).items() if value is not None]
    path.write_text("[mine]\n" + "\n".join(lines) + "\n")
    return path


def test_the_profiles_of_the_package_are_complete():
    known = load()
    assert {"openai", "openrouter", "vllm", "ollama"} <= known.keys()
    assert {"codex", "gemini", "aider", "opencode", "claude"} <= known.keys()
    for one in known.values():
        assert from_json(to_json(one)) == one
        hosted = isinstance(one, Command) or "localhost" not in one.base_url
        assert (one.dollars_in > 0 and one.dollars_out > 0) == hosted


def test_a_file_on_disk_comes_before_that_of_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load(FILE) == load()
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "providers.toml").write_text(write(tmp_path, API).read_text())
    assert list(load(FILE)) == ["mine"]


def test_a_profile_may_have_every_field(tmp_path):
    fields = {"temperature": "0.5", "limit_field": '"max_tokens"', "retries": "0", "env": '"A"'}
    table = "{max_tokens = 5, logit_bias = {key_words = 1}, reasoning = {effort = 'low'}}"
    loaded = load(write(tmp_path, API, extra_body=table, **fields))["mine"]
    assert loaded.extra_body["reasoning"] == {"effort": "low"}
    assert (loaded.env, loaded.temperature) == (("A",), 0.5)
    assert load(write(tmp_path, COMMAND))["mine"].retries == 0


BAD = [
    (API, {"kind": '"http"'}, "mine.kind must be"),
    (API, {"kind": None}, "mine.kind must be there"),
    (API, {"model": '""'}, "mine.model must be"),
    (API, {"base_url": None}, "mine.base_url must be there"),
    (API, {"dollars_in": None}, "mine.dollars_in must be there"),
    (API, {"dollars_in": "-1"}, "mine.dollars_in must be float >= 0"),
    (API, {"dollars_in": "nan"}, "mine.dollars_in must be float >= 0"),
    (API, {"dollars_in": "true"}, "mine.dollars_in must be float, got bool"),
    (API, {"max_output_tokens": "1.5"}, "mine.max_output_tokens must be int"),
    (API, {"timeout_seconds": "0"}, "mine.timeout_seconds must be float >= 0.1"),
    (API, {"retries": "99"}, "mine.retries must be int <= 20"),
    (API, {"limit_field": '"n"'}, "mine.limit_field must be"),
    (API, {"env": "[1]"}, "mine.env"),
    (API, {"extra_body": "1"}, "mine.extra_body must be object"),
    (API, {"colour": "1"}, "unknown field colour"),
    (API, {"command": '["a"]'}, "unknown field command"),
    (COMMAND, {"base_url": '"x"'}, "unknown field base_url"),
    (COMMAND, {"command": "[]"}, "mine.command must be"),
    (COMMAND, {"command": '["a", "{promptfile}"]'}, "no placeholders but prompt_file, answer_file"),
    (COMMAND, {"command": '["a"]'}, "must contain {prompt_file} unless prompt_on_stdin is true"),
    (COMMAND, {"prompt_on_stdin": '"yes"'}, "mine.prompt_on_stdin must be bool, got str"),
]


@pytest.mark.parametrize(("table", "changed", "words"), BAD)
def test_a_mistake_is_named_in_one_line(tmp_path, table, changed, words):
    path = write(tmp_path, table, **changed)
    with pytest.raises(ProviderError) as error:
        load(path)
    message = str(error.value)
    assert message.startswith(f"{path}: mine") and "\n" not in message
    assert words in message.replace("`", "")


SECRET = "sk-4f9a8b7c6d5e"
URLS = (
    *(f"https://user:{SECRET}@host/v1", f"https://{SECRET}@host/v1", f"ftp://host/{SECRET}"),
    *(f"https://host/v1?key={SECRET}", f"https://host/v1?{SECRET}", f"https://host/v1#{SECRET}"),
    *(f"https://user:a/{SECRET}@host/v1", f"user:{SECRET}@host/v1", f"http://host:{SECRET}/v1"),
    *(f"http:///{SECRET}", f"http://[{SECRET}/v1", f"http://host/v1 {SECRET}"),
)
KEPT = [
    *((API, {"base_url": f'"{url}"'}, "base_url must be an http:// or https://") for url in URLS),
    (API, {"key_env": f'"{SECRET}"'}, "mine.key_env must be the name of an environment variable"),
    (API, {"env": f'["A", "{SECRET}"]'}, "mine.env must be a list of names"),
    (API, {"api_key": f'"{SECRET}"'}, "unknown field"),
    (API, {"extra_body": f'{{api_key = "{SECRET}"}}'}, "mine.extra_body must contain no key"),
    (API, {"extra_body": f'{{a = [{{Authorization = "{SECRET}"}}]}}'}, "must contain no key"),
    (COMMAND, {"command": f'["a", "{{prompt_file}}", "--api-key", "{SECRET}"]'}, "contain no key"),
    (COMMAND, {"command": f'["a", "{{prompt_file}}", "--token={SECRET}"]'}, "must contain no key"),
]


@pytest.mark.parametrize(("table", "changed", "words"), KEPT)
def test_a_key_in_a_profile_is_refused_and_not_repeated(tmp_path, table, changed, words):
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


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_redacted_text_has_no_credentials_of_urls(name):
    user = "".join(name.split()) or "u"
    for character in "\"'<>&)]":
        user = user.replace(character, "")
    text = (
        f"GET https://{user}:{SECRET}@host/v1?a=1&api_key={SECRET} Authorization: Bearer {SECRET}"
    )
    assert SECRET not in redacted(f"{text}, {text}") and "//[secret]@host/v1?a=1" in redacted(text)


def test_a_file_without_profiles_is_refused(tmp_path):
    with pytest.raises(ProviderError, match="providers must be a TOML file, such as configs"):
        load(tmp_path / "none.toml")
    for text, words in [
        ("a = [", "read as TOML"),
        ("", "one table per provider, got none"),
        ("a = 1", "a must be a table"),
    ]:
        (tmp_path / "bad.toml").write_text(text)
        with pytest.raises(ProviderError, match=words):
            load(tmp_path / "bad.toml")


def test_what_this_machine_lacks_is_named(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    known = load()
    assert "variable OPENAI_API_KEY is not set" in providers.missing(known["openai"])
    nowhere = provider(command=("nowhere-to-be",))
    assert "program nowhere-to-be is not installed" in providers.missing(nowhere)
    assert providers.missing(provider()) is None
    monkeypatch.setattr(providers.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'nanoevolve-jax[codegen]'" in providers.missing(known["ollama"])
    with pytest.raises(ProviderError, match=r"--provider must be one of openai, .* got 'x'"):
        providers.choose_profile(known, "x", "--provider")


def test_braces_that_are_not_placeholders_belong_to_the_command():
    places = {"prompt_file": "P", "model": "M"}
    filled = providers.filled(('{"a": {}}', "{prompt_file}:{model}", "{}"), places)
    assert filled == ['{"a": {}}', "P:M", "{}"]
