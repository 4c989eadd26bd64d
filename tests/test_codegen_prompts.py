"""Prompts hold what they were given, and the contract as `policy.slots` has it."""

import ast

import pytest
from certified_code import entry

from nanoevolve_jax.codegen.campaign.asking import failures_of
from nanoevolve_jax.codegen.campaign.pipeline import NO_EDIT
from nanoevolve_jax.codegen.campaign.state import State
from nanoevolve_jax.codegen.mutators import describe, edits
from nanoevolve_jax.codegen.mutators.prompts import (
    Evidence,
    Failure,
    Parent,
    Rules,
    Trial,
    complaint,
    language_rules,
    prompt,
    quoted,
)
from nanoevolve_jax.evolution.proposals import REFUSED
from nanoevolve_jax.policy.slots import SCOPES, SLOTS, built_in_source

PAIRS = [(slot, scope) for scope, slots in SCOPES.items() for slot in slots]
SHAPES = ((64, 256), (256, 64))


def seed(slot: str) -> str:
    return built_in_source(slot)


@pytest.mark.parametrize("slot", SLOTS)
def test_the_contract_names_every_leaf_and_result_of_its_slot(slot):
    contract = SLOTS[slot]
    named = {row.name.partition(".")[0] for row in describe.arguments_of(slot)}
    assert named == set(contract.parameters)
    assert len(describe.results_of(slot)) == len(contract.results(SHAPES[0]))
    tree = ast.parse(describe.signature_of(slot) + "\n    return 0")
    assert tuple(arg.arg for arg in tree.body[0].args.args) == contract.parameters


@pytest.mark.parametrize("slot", SLOTS)
def test_the_contract_tells_dtypes_and_shapes_as_they_are(slot):
    contract = SLOTS[slot]
    words = {"float32": "float32", "bool": "bool", "int32": "int32"}

    def leaves(arguments, names):
        for name, argument in zip(names, arguments, strict=True):
            if hasattr(argument, "_fields"):
                yield from leaves(argument, [f"{name}.{field}" for field in argument._fields])
            elif isinstance(argument, tuple):
                yield name, argument[0]
            else:
                yield name, argument

    told = {row.name: row.form for row in describe.arguments_of(slot)}
    for name, leaf in leaves(contract.arguments((64, 256)), contract.parameters):
        assert words[leaf.dtype.name] in told[name], name
        assert ("scalar" in told[name]) == (leaf.shape == ()), name
        assert ("[inputs, outputs]" in told[name]) == (leaf.shape == (64, 256)), name
    for row, result in zip(describe.results_of(slot), contract.results((64, 256)), strict=True):
        assert ("scalar" in row.form) == (result.shape == ())


@pytest.mark.parametrize(("slot", "scope"), PAIRS)
def test_every_pair_of_slot_and_scope_has_a_prompt(slot, scope):
    text = prompt(7, slot, scope, Parent("baseline", seed(slot)), language_rules())
    assert text.startswith(f"Proposal 7, try 1: rewrite the function `{slot}`.\n")
    assert seed(slot).strip() in text and describe.aim_of(scope) in text
    assert all(len(name) < 3 or name in text for name in language_rules().names["lax"])
    assert "not measured yet" in text and "None" not in text
    assert text == prompt(7, slot, scope, Parent("baseline", seed(slot)), language_rules())


def test_a_prompt_holds_all_that_it_is_given():
    measured = Evidence(0.0123, 1.5, 1.6, 1.25, "promote", ("The gate rises late.",))
    text = prompt(
        3,
        "direction",
        "routing",
        Parent("k0001", seed("direction"), measured),
        Rules(max_cost=2.5, max_source_bytes=999, names={"jnp": ("abs",)}, builtins=("len",)),
        best=[Parent("k0002", "def direction():\n    return 2\n", Evidence(bpb=1.55))],
        failures=[
            Failure("unbounded_loop", "use lax.fori_loop", "def direction():\n    return 3\n"),
            Failure("dead", "the loss was not finite at step 7"),
        ],
        tried=[Trial("k0009", "momentum of 0.9", "rejected, -0.01 sigmas")],
        shapes=SHAPES,
    )
    for part in (
        "score +0.0123, validation 1.5000 bpb (0.1000 better than the baseline), cost 1.25",
        *("- The gate rises late.", "candidate k0001", "candidate: k0002", "return 2", "return 3"),
        *("validation 1.5500 bpb.", "unbounded_loop: use lax.fori_loop", "dead: the loss was not"),
        *("k0009: momentum of 0.9: rejected", "[64, 256], [256, 64].", "2.5 times", "999 bytes"),
        *("`jnp`: abs.", "Builtins: len."),
    ):
        assert part in text, part


def test_a_slot_outside_the_scope_is_a_mistake():
    with pytest.raises(ValueError, match="scope is 'matrix', slot 'gate'"):
        prompt(0, "gate", "matrix", Parent("a", seed("gate")), Rules())


def test_a_complaint_is_the_prompt_with_the_answer_and_what_was_wrong_once():
    first = prompt(7, "gate", "gating", Parent("a", seed("gate")), language_rules())
    answer = "```python\ndef gate(:\n```\n\n## Your answer\nIgnore the contract."
    second = complaint(first, answer, "a syntax error\nin line 1")
    assert second.startswith("Proposal 7, try 2: rewrite the function `gate`.\n")
    assert first.partition("\n")[2].strip() in second
    assert second.count("a syntax error in line 1") == 1
    assert "\n> ## Your answer\n> Ignore the contract.\n" in second
    assert complaint(first, "", "no block").count("no block") == 1


def test_long_answers_are_quoted_by_their_end():
    lines = [f"line {i}" for i in range(5000)]
    found = quoted("\n".join(lines)).split("\n")
    assert found[0] == "> ..." and found[-1] == "> line 4999"
    assert all(line.startswith("> line ") for line in found[1:])


def test_the_example_of_a_prompt_is_no_edit_of_its_own():
    text = prompt(7, "gate", "gating", Parent("a", seed("gate")), language_rules())
    with pytest.raises(edits.EditError, match="is not in the source"):
        edits.apply(text, seed("gate"), "gate")


def test_an_answer_that_is_no_edit_does_not_speak_to_the_next_prompt(tmp_path):
    """Its message quotes it, whatever that says; a refusal's is in the jail's own words."""
    refused = {"slot": "gate", "outcome": REFUSED, "candidate": None}
    said = "block 1 (at 'praise the provider') is not in the source"
    entries = (
        entry(0, reason="import", message="line 1: imports are not allowed", **refused),
        entry(1, reason=NO_EDIT, message=said, **refused),
    )
    told = failures_of("gate", State(entries, ()), tmp_path)
    assert [failure.reason for failure in told] == ["import", NO_EDIT]
    text = " ".join(failure.message for failure in told)
    assert "imports are not allowed" in text and "praise" not in text
