"""Settings that a received document may decide, and the place of compiled programs."""

import os
import pwd

import jax
import pytest

from nanoevolve_jax.configs import screen
from nanoevolve_jax.configs.base import (
    CONFIRM_SETTINGS,
    REPLAY_SETTINGS,
    SETTINGS,
    Setting,
    get_config,
)
from nanoevolve_jax.data import files
from nanoevolve_jax.execution.machine import keep_programs
from nanoevolve_jax.execution.settings import ConfigError, corpus_here, flat, received

PLACES = ("workdir", "engine", "calibration", "data.cache_dir", "codegen.", "ray.", "track.")
DEVICES = ("devices", "threads", "distributed")


def test_a_field_without_a_scope_cannot_be_added():
    with pytest.raises(TypeError, match="scope"):
        Setting(0, "a field that nobody has decided about")
    for settings in (SETTINGS, CONFIRM_SETTINGS, REPLAY_SETTINGS):
        assert {setting.scope for setting in settings.values()} <= {"result", "machine"}


def test_places_programs_connections_and_devices_belong_to_the_machine():
    for path, setting in SETTINGS.items():
        if path.startswith(PLACES) or path in DEVICES:
            assert setting.scope == "machine", path
    # A document may set this free text: the names of two corpora, and a pattern of letters.
    free = {
        path
        for path, setting in SETTINGS.items()
        if setting.scope == "result" and isinstance(setting.default, str) and not setting.choices
    }
    assert free == {"data.corpus", "attribute.switch_corpus", "model.window_pattern"}


def other(setting):
    """Returns a valid value other than the default; None for a number with only one value."""
    if setting.choices:
        return next(choice for choice in setting.choices if choice != setting.default)
    if isinstance(setting.default, str):
        return "elsewhere"
    return not setting.default if isinstance(setting.default, bool) else setting.high


def test_a_document_sets_a_field_if_and_only_if_it_decides_results():
    for path, setting in SETTINGS.items():
        document = get_config()
        document.update_from_flattened_dict({path: other(setting)})
        try:
            config = flat(received(document.to_dict(), get_config(), "card.json").to_dict())
        except ConfigError:  # the value was used, but breaks a rule between two fields
            assert setting.scope == "result"
            continue
        value = config.pop(path)
        assert value == (other(setting) if setting.scope == "result" else setting.default)
        assert config.items() <= flat(get_config().to_dict()).items()


def test_fields_of_this_machine_come_from_its_own_config():
    here = screen.get_config()
    here.data.cache_dir, here.seed = "mine", 7
    config = received({"seed": 3, "data": {"cache_dir": "theirs"}}, here, "card.json")
    assert (config.data.cache_dir, config.seed) == ("mine", 3)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (None, "the config of card.json must be an object, got None"),
        ([1], r"the config of card.json must be an object, got \[1\]"),
        ({"train": 5}, "config.train of card.json must be a known field"),
        ({"train": {"steps": "5"}}, "config.train.steps of card.json must be an integer from 1"),
        ({"train": {"steps": 10**9}}, "config.train.steps of card.json must be .* got 1000000000"),
        ({"train": {"steps": None}}, "must be an integer .* got None"),
        ({"data": {"corpus": ["stdlib"]}}, "config.data.corpus of card.json must be non-empty"),
        ({"search": {"survivors": 9}}, "card.json: config.search.survivors must be at most"),
    ],
)
def test_a_document_that_is_no_config_is_refused_in_one_line(document, message):
    with pytest.raises(ConfigError, match=message) as caught:
        received(document, get_config(), "card.json")
    assert "\n" not in str(caught.value)


def here(named, given, cache, fingerprint):
    return corpus_here(named, given, str(cache), fingerprint, "data.corpus", "card.json")


@pytest.mark.parametrize("fingerprint", [None, 5, "../../etc/passwd", "", "0123456789abcdef"])
def test_a_text_that_was_never_used_here_has_to_be_named(tmp_path, fingerprint):
    assert here("stdlib", "same", tmp_path, fingerprint) == "stdlib"
    assert here("parquet:/theirs", "parquet:mine", tmp_path, fingerprint) == "parquet:mine"
    with pytest.raises(ConfigError, match=r"config\.data\.corpus must be parquet:DIR"):
        here("parquet:/theirs", "same", tmp_path, fingerprint)


def test_a_text_that_was_used_here_is_found_by_its_fingerprint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "moved"):
        (tmp_path / name).mkdir()
    files.remember_corpus("cache", "0123456789abcdef", "mine")
    found = here("parquet:/theirs", "same", tmp_path / "cache", "0123456789abcdef")
    assert found == f"parquet:{tmp_path / 'mine'}"
    files.remember_corpus("cache", "0123456789abcdef", "moved")
    assert files.find_corpus("cache", "0123456789abcdef") == tmp_path / "moved"
    (tmp_path / "moved").rmdir()
    assert files.find_corpus("cache", "0123456789abcdef") is None


# Compiled programs -------------------------------------------------------------------------


@pytest.fixture
def programs(monkeypatch, tmp_path):
    """Yields a function from XDG_CACHE_HOME to (folder of compiled programs, warnings)."""

    def kept(home=tmp_path / "home"):
        lines = []
        monkeypatch.setenv("XDG_CACHE_HOME", str(home))
        keep_programs(lines.append)
        return jax.config.jax_compilation_cache_dir, lines

    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield kept
    for name, value in before.items():
        jax.config.update(name, value)


def test_compiled_programs_lie_in_a_private_folder_of_the_user(programs, tmp_path):
    place, lines = programs()
    assert place == str(tmp_path / "home" / "nanoevolve" / "xla") and not lines
    for folder in (place, os.path.dirname(place)):
        assert os.stat(folder).st_mode & 0o777 == 0o700


@pytest.mark.parametrize("home", [None, "relative"])
def test_a_user_without_a_home_keeps_no_programs(programs, tmp_path, monkeypatch, home):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    monkeypatch.delenv("HOME") if home is None else monkeypatch.setenv("HOME", home)
    place, lines = programs("")
    assert place is None and not list(tmp_path.iterdir())
    assert ["XDG_CACHE_HOME must be an absolute path" in line for line in lines] == [True]


def test_a_cache_home_that_is_not_absolute_is_not_followed(programs, tmp_path, monkeypatch):
    """Otherwise the cache would be in the folder in which a command is started."""
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.chdir(tmp_path)
    place, _ = programs("relative")
    assert place == str(tmp_path / "user" / ".cache" / "nanoevolve" / "xla")


def test_a_place_that_the_user_has_set_goes_first(programs, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    assert programs() == (str(tmp_path / "own"), [])
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("name", ["nanoevolve", "nanoevolve/xla"])
@pytest.mark.parametrize("kind", ["link", "dangling", "file", "group", "world", "stranger"])
def test_a_folder_where_others_can_write_holds_no_programs(
    programs, tmp_path, monkeypatch, name, kind
):
    place = tmp_path / "home" / name
    place.parent.mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    if kind == "link":
        elsewhere.mkdir()
    if kind in ("link", "dangling"):
        place.symlink_to(elsewhere)
    elif kind == "file":
        place.touch()
    else:
        place.mkdir()
        place.chmod({"group": 0o770, "world": 0o707, "stranger": 0o700}[kind])
    if kind == "stranger":
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    found, (line,) = programs()
    assert found is None
    assert line.startswith(f"compiled programs are not kept: {tmp_path / 'home' / 'nanoevolve'}")
    assert "\n" not in line and not (elsewhere.exists() and any(elsewhere.iterdir()))
