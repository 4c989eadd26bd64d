"""Drafts in the reasoning of a model never become candidates."""

import ast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from test_codegen_edits import _PIECES, SOURCE, block, fenced

from nanoevolve_jax.codegen.mutators.edits import EditError, apply

DRAFT = block("SCALE = 2.0", "SCALE = 9.0")
ELSEWHERE = block("    y = x * 3.0", "    y = x * 9.0")
EDIT = block("SCALE = 2.0", "SCALE = 4.0")
EDITED = SOURCE.replace("2.0", "4.0")
TAGS = (
    *(("<think>", "</think>"), ("<Think>", "</THINK>"), ("<thinking>", "</thinking>")),
    *(("<reasoning>", "</reasoning>"), ("<thought>", "</thought>"), ("<draft>", "</draft>")),
    *(("<scratchpad>", "</scratchpad>"), ("<analysis>", "</analysis>"), ("[THINK]", "[/THINK]")),
    *(('<think budget="high">', "</think >"), ("<seed:think>", "</seed:think>")),
    *(("<|begin_of_thought|>", "<|end_of_thought|>"), ("<|START_THINKING|>", "<|END_THINKING|>")),
    *(("<antThinking>", "</antThinking>"), ("◁think▷", "◁/think▷")),
    *(("<reasoning_content>", "</reasoning_content>"), ("<rationale>", "</rationale>")),
    *(("<ThoughtProcess>", "</ThoughtProcess>"), ("<|think_start|>", "<|think_end|>")),
    ("Thinking...\n", "\n...done thinking.\n"),
    ("<|channel>thought\n", "<channel|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("<|channel|>commentary to=x <|message|>", "<|end|>"),
    ("analysisWe need less. ", "assistantfinal"),
)
PIECES = (*_PIECES, DRAFT, ELSEWHERE, fenced("SCALE = 9.0"), "why")
drafts = st.lists(st.sampled_from(PIECES), max_size=12)


@pytest.mark.parametrize(("opening", "closing"), TAGS)
@pytest.mark.parametrize("answer", [EDIT, fenced("SCALE = 4.0")], ids=["block", "code"])
def test_drafts_in_reasoning_are_dropped(opening, closing, answer):
    for draft in (DRAFT, fenced("SCALE = 9.0"), "```python\nSCALE = 9.0\n", "<<<<<<< SEARCH\n"):
        for line in ("", "\n"):
            text = f"{opening}{line}{draft}{line}{closing}{line}{answer}"
            assert apply(text, SOURCE, "gate") == EDITED


@pytest.mark.parametrize("closing", [tag for _, tag in TAGS[:-3]])
def test_text_before_a_lone_closing_tag_is_reasoning(closing):
    for draft in (DRAFT, fenced(f"{DRAFT}Wait, no."), "```python\nSCALE = 9.0\n"):
        assert apply(f"Less?\n{draft}\n{closing}\n{EDIT}", SOURCE, "gate") == EDITED


@pytest.mark.parametrize("opening", [tag for tag, _ in TAGS])
def test_reasoning_without_an_end_is_not_an_answer(opening):
    for text in (f"{opening}{DRAFT}", f"{opening}{fenced('SCALE = 9.0')}"):
        with pytest.raises(EditError, match="ends inside its reasoning"):
            apply(text, SOURCE, "gate")


@given(drafts, st.sampled_from(TAGS))
def test_no_draft_changes_the_edited_source(pieces, tag):
    text = "\n".join([tag[0], *pieces, tag[1], EDIT])
    assert apply(text, SOURCE, "gate") == EDITED


@given(drafts, st.sampled_from(["</think>", "[/THINK]", " no.</reasoning>"]))
@example([ELSEWHERE], "</think>")
@example(["```", ELSEWHERE], " no.</reasoning>")
@example(["<<<<<<< SEARCH", "SCALE = 2.0", "=======", "SCALE = 9.0"], "</think>")
def test_no_draft_before_a_lone_closing_tag_becomes_the_source(pieces, closing):
    try:
        edited = apply("\n".join([*pieces, f"{closing}\n{EDIT}"]), SOURCE, "gate")
    except EditError:
        return
    assert edited == EDITED


NESTED = {
    "nested": (f"<think>a<think>b</think>{DRAFT}</think>{EDIT}", True),
    "nested with other names": (f"<think><reasoning>b</reasoning>{DRAFT}</think>{EDIT}", True),
    "opened twice, by a template and the model": (f"<think>\n<think>\n{DRAFT}</think>{EDIT}", True),
    "closed by another name": (f"<thinking>{DRAFT}</think>{EDIT}", True),
    "several": (f"<think>a</think>{EDIT}<think>{DRAFT}</think>", True),
    "a mention": (f"I use no `<think>` here.\n{EDIT}", True),
    "an empty element": (f"<think/>\n{EDIT}", True),
    "an outer one without an end": (f"<think><reasoning>b</reasoning>{DRAFT}", False),
    "one after the answer without an end": (f"{EDIT}<think>{DRAFT}", False),
    "nothing after it": (f"<think>{DRAFT}</think>", False),
}


@pytest.mark.parametrize(("text", "good"), NESTED.values(), ids=NESTED)
def test_reasoning_nests(text, good):
    if good:
        assert apply(text, SOURCE, "gate") == EDITED
    else:
        with pytest.raises(EditError):
            apply(text, SOURCE, "gate")


MENTION = "SCALE = 4.0  # not <think>, </think> or [/THINK]"


@pytest.mark.parametrize("reasoning", ["", f"<think>{DRAFT}</think>\n", f"{DRAFT}</think>\n"])
@pytest.mark.parametrize("answer", [block("SCALE = 2.0", MENTION), fenced(MENTION), MENTION])
def test_a_tag_in_code_never_lets_a_draft_through(reasoning, answer):
    """The tag counts, so the answer is refused or gives the same edit as without the tag."""
    try:
        edited = apply(f"{reasoning}{answer}", SOURCE, "gate")
    except EditError:
        return
    assert ast.dump(ast.parse(edited)) == ast.dump(ast.parse(EDITED))
