"""Specs survive JSON, and every mistake in a spec is reported in a single line."""

import json
import math

import pytest
from hypothesis import given
from specs import specs

from nanoevolve_jax.policy.spec import FIELDS, NANOCHAT, PRESETS, get_field
from nanoevolve_jax.policy.spec_json import SpecError, load_spec, spec_from_json, spec_to_json


@given(specs())
def test_any_spec_survives_a_round_trip_through_json_text(spec):
    assert spec_from_json(json.loads(json.dumps(spec_to_json(spec)))) == spec


def test_defaults_lie_within_their_bounds():
    for path, field in FIELDS.items():
        assert field.low <= field.default <= field.high, path
        assert field.low < field.high, path
        assert get_field(NANOCHAT, path) == field.default


def test_switches_are_words_in_json():
    document = spec_to_json(NANOCHAT)
    assert document["decay"] == "cautious"
    assert document["control"]["enabled"] == "off"
    assert document["ns_steps"] == 5


def broken(path, value):
    """Returns the baseline's JSON with one field replaced, or removed if `value` is `...`."""
    document = spec_to_json(NANOCHAT)
    *groups, name = path.split(".")
    node = document
    for group in groups:
        node = node[group]
    if value is ...:
        del node[name]
    else:
        node[name] = value
    return document


MISTAKES = [
    ("momentum", 0.995, "a number from 0 to 0.99"),
    ("momentum", "0.9", "a number from 0 to 0.99"),
    ("momentum", math.nan, "a number from 0 to 0.99"),
    ("momentum", math.inf, "a number from 0 to 0.99"),
    ("momentum", None, "a number from 0 to 0.99"),
    ("momentum", True, "a number from 0 to 0.99"),
    ("momentum", ..., "missing"),
    ("momentums", 0.9, "unknown"),
    ("ns_steps", 6, "an integer from 1 to 5"),
    ("ns_steps", 2.5, "an integer from 1 to 5"),
    ("decay", "cautios", "none or decoupled or cautious"),
    ("decay", 2, "none or decoupled or cautious"),
    ("decay", ["none"], "none or decoupled or cautious"),
    ("control", 3, "control"),
    ("control.bias", -9, "a number from -2 to 2"),
    ("control.coefficients.loss_ema", ..., "missing"),
    ("control.coefficients.loss", 1.0, "unknown"),
    ("control.normalisers.loss_ema", 0, "a number from 0.001 to 100"),
    ("control.aggressive.clip_threshold", {"x": 1}, "a number from 0.1 to 10"),
]


@pytest.mark.parametrize(("path", "value", "rule"), MISTAKES)
def test_a_mistake_is_one_line_that_names_the_field_and_the_rule(path, value, rule):
    with pytest.raises(SpecError) as caught:
        spec_from_json(broken(path, value))
    message = str(caught.value)
    assert "\n" not in message
    assert path in message
    assert rule in message


@pytest.mark.parametrize("path", FIELDS)
def test_every_field_refuses_what_lies_beyond_its_bounds(path):
    field = FIELDS[path]
    beyond = ["no such word"] if field.choices else [field.low - 1, field.high + 1]
    for value in beyond:
        with pytest.raises(SpecError, match=path):
            spec_from_json(broken(path, value))


@pytest.mark.parametrize("document", [None, [], "nanochat", 3])
def test_what_is_not_an_object_is_refused(document):
    with pytest.raises(SpecError, match="JSON object"):
        spec_from_json(document)


def test_spec_files_load_alone_or_inside_an_archive_record(tmp_path):
    for name, document in [("a", spec_to_json(PRESETS["annealing"]))] + [
        ("b", {"id": "x", "spec": spec_to_json(PRESETS["annealing"])})
    ]:
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(document))
        assert load_spec(path) == PRESETS["annealing"]


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", None])
def test_a_file_that_is_no_json_is_one_line(tmp_path, content):
    path = tmp_path / "spec.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert "\n" not in str(caught.value)
