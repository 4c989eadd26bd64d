"""Replies of endpoints: their text, their cost, and the decision to try again."""

import asyncio
import email.utils
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoevolve_jax.codegen.mutators import calls, replies
from nanoevolve_jax.codegen.mutators.budget import (
    Limits,
    Spent,
    exceeded,
    worst_attempt,
    worst_call,
)
from nanoevolve_jax.codegen.mutators.providers import Api
from nanoevolve_jax.codegen.mutators.replies import requested_wait

PROMPT = "Proposal 3, try 1: rewrite the function `gate`.\n"
PROVIDER = Api(
    name="a",
    model="m",
    base_url="http://localhost",
    dollars_in=3.0,
    dollars_out=11.0,
    max_output_tokens=700,
    retries=0,
)
MOST_IN, MOST_OUT = worst_attempt(PROVIDER, PROMPT)


def read(reply, **headers):
    return replies.read(json.dumps(reply).encode(), headers)


def completion(content="an answer", usage=None, reason="stop", **message):
    choice = {"message": {"content": content} | message, "finish_reason": reason}
    return {"choices": [choice], "usage": usage}


def answer_of(attempt):
    async def attempted():
        return attempt

    return asyncio.run(calls.call(PROVIDER, PROMPT, attempted))


# Tokens -------------------------------------------------------------------------------------


def used(prompt, written, total=None, reasoning=None, **more):
    usage = {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": total} | more
    details = {} if reasoning is None else {"reasoning_tokens": reasoning}
    return usage | {"completion_tokens_details": details}


USAGES = {
    "inside": (used(30, 210, 240), (30, 210)),
    "inside, with details": (used(30, 210, 240, 200), (30, 210)),
    "outside, in the total": (used(30, 5, 245), (30, 215)),
    "outside, in the details": (used(30, 5, 35, 210), (30, 215)),
    "details without a total": (used(30, 15, None, 10), (30, 25)),
    "a field of its own": (used(30, 5, reasoning_tokens=210), (30, 215)),
    "floats": (used(30.0, 215.0), (30, 215)),
    "null details": (used(30, 5) | {"completion_tokens_details": None}, (30, 5)),
    "zeros": (used(0, 0, 0), (None, None)),
    "no output": (used(30, 0, 30), (30, None)),
    "no input": (used(0, 5, 245), (None, 245)),
    "names of another API": ({"input_tokens": 30, "output_tokens": 5}, (None, None)),
    **{
        f"{value!r}": (used(30, value), (30, None))
        for value in (-5, float("nan"), float("inf"), "5", True, None, 2.5, 10**30, [5], {})
    },
    **{f"{usage!r}": (usage, (None, None)) for usage in ({}, None, "many", [30, 5])},
}


@pytest.mark.parametrize(("usage", "counted"), USAGES.values(), ids=USAGES)
def test_tokens_count_as_the_most_that_a_report_can_mean(usage, counted):
    attempt = read(completion(usage=usage))
    assert (attempt.text, attempt.input_tokens, attempt.output_tokens) == ("an answer", *counted)


bad = st.sampled_from([0, -1, None, True, "12", float("nan"), float("inf"), 10**40, [], {}])


@st.composite
def reports(draw):
    """Draws the tokens of a call and one way in which an endpoint may report them."""
    inputs = draw(st.integers(1, MOST_IN))
    output = draw(st.integers(1, MOST_OUT))
    thought = draw(st.integers(0, output - 1))
    ways = {
        "inside": used(inputs, output, inputs + output),
        "total": used(inputs, output - thought, inputs + output),
        "details": used(inputs, output - thought, None, thought),
    }
    way = draw(st.sampled_from(sorted(ways)))
    report = ways[way]
    if way == "inside":  # in the other forms the remaining fields may hide reasoning
        report |= {name: draw(bad) for name in draw(st.sets(st.sampled_from(sorted(report))))}
    elif draw(st.booleans()):
        report = dict.fromkeys(report, draw(bad))
    return inputs, output, report


@given(st.lists(reports(), max_size=8), st.integers(0, 6000), st.floats(0.0, 0.05))
def test_hard_limits_hold_whatever_is_reported(reported, most_tokens, most_dollars):
    """This requires that no attempt uses more than the endpoint was allowed."""
    limits = Limits(tokens=most_tokens, dollars=most_dollars)
    answers, used_tokens, used_dollars = [], 0, 0.0
    for inputs, output, report in reported:
        if exceeded(limits, calls.cost_of(answers), Spent(), worst_call(PROVIDER, PROMPT)):
            break
        answers.append(answer_of(read(completion("x", report))))
        used_tokens += inputs + output
        used_dollars += PROVIDER.dollars(inputs, output)
    spent = calls.cost_of(answers)
    assert used_tokens <= spent.tokens <= most_tokens or not answers
    assert used_dollars <= spent.dollars + 1e-12 and spent.dollars <= most_dollars + 1e-12


def test_an_error_in_a_reply_costs_what_it_reports_and_otherwise_the_most():
    for error, usage, cost in [
        ({"message": "lost", "code": 500}, used(30, 5, 35), (30, 5, 1)),
        ({"message": "lost"}, None, (MOST_IN, MOST_OUT, 1)),
        ({"message": "slow down", "code": 429}, None, (0, 0, 0)),
        ({"message": "no more", "type": "insufficient_quota"}, None, (0, 0, 0)),
        ({"message": "no such model", "code": 404}, None, (0, 0, 0)),
    ]:
        answer = answer_of(read({"error": error, "usage": usage}))
        assert (answer.input_tokens, answer.output_tokens, answer.requests) == cost
    assert all(replies.refused(status, None, {}).paid for status in (502, 504, 520, 524))


# Texts --------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.dictionaries(st.sampled_from(["code", "message", "text", "type", "x"]), inside)
    ),
    max_leaves=6,
)
replies_of_any_form = st.dictionaries(
    st.sampled_from(["choices", "error", "usage", "message", "object", "detail"]),
    json_values
    | st.lists(st.fixed_dictionaries({"message": st.fixed_dictionaries({"content": json_values})})),
)


@given(replies_of_any_form | json_values)
def test_each_reply_is_a_text_or_a_failure(reply):
    attempt = read(reply)
    assert bool(attempt.text.strip()) == (attempt.failure is None)
    for count in (attempt.input_tokens, attempt.output_tokens):
        assert count is None or (isinstance(count, int) and count > 0)


TEXT = {"type": "text", "text": "an answer"}


@pytest.mark.parametrize(
    "content",
    [
        "an answer",
        [TEXT],
        [{"type": "text", "text": "an "}, {"type": "text", "text": "answer"}],
        [{"type": "output_text", "text": "an answer", "annotations": []}],
        [{"type": "thinking", "thinking": [TEXT]}, TEXT],
        [{"type": "reasoning", "text": "a draft"}, TEXT],
        ["an ", "answer"],
        TEXT,
        [{"text": "an answer"}],
    ],
)
def test_text_is_read_from_every_form_of_content(content):
    attempt = read(completion(content, reasoning_content="<draft>"))
    assert (attempt.text, attempt.failure) == ("an answer", None)


@pytest.mark.parametrize(
    ("message", "reason", "words"),
    [
        ({"content": None, "refusal": "I cannot"}, "stop", "the model refuses: I cannot"),
        ({"content": [{"type": "refusal", "refusal": "I cannot"}]}, "stop", "refuses: I cannot"),
        ({"content": None, "tool_calls": [{"id": "1"}]}, "tool_calls", "it calls a tool"),
        ({"content": None, "reasoning_content": "hm"}, "stop", "reasoning alone"),
        ({"content": "", "reasoning": "hm"}, "stop", "reasoning alone"),
        ({"content": [{"type": "image_url", "image_url": {}}]}, "stop", "holds no text"),
        ({"content": None}, "stop", "finish_reason 'stop'"),
        ({"content": "half an answer"}, "length", "cut off at max_output_tokens"),
        ({"content": "half"}, "MAX_TOKENS", "cut off at max_output_tokens"),
        ({"content": "half"}, "content_filter", "cut off by a content filter"),
        ({"content": "half"}, "SAFETY", "cut off by a content filter"),
    ],
)
def test_a_reply_without_an_answer_is_a_failure_that_explains_why(message, reason, words):
    attempt = read(completion(reason=reason, **message))
    assert words in attempt.failure and attempt.text == ""
    assert attempt.paid and not attempt.again


@pytest.mark.parametrize("body", [b"<!doctype html>", b"data: [DONE]", b"\xff"])
def test_a_body_that_is_not_json_is_a_failure(body):
    assert "not JSON" in replies.read(body, {}).failure


@pytest.mark.parametrize("reason", ["error", "network_error", "insufficient_system_resource"])
def test_a_text_that_broke_off_is_paid_and_requested_again(reason):
    attempt = read(completion("half an ans", reason=reason))
    assert attempt.text == "" and attempt.paid and attempt.again
    assert f"broke off (finish_reason {reason!r})" in attempt.failure


# Errors -------------------------------------------------------------------------------------

QUOTA = "You exceeded your current quota, please check your plan and billing details."
RATE = "Rate limit reached. Add a payment method at https://host/account/billing to raise it."
EXHAUSTED = {"code": 429, "message": QUOTA, "status": "RESOURCE_EXHAUSTED"}
TRANSIENT = [  # status, and the reply or its error
    (200, {"error": {"message": "slow down", "code": 429}}),
    (200, {"error": {"message": "slow down", "code": "429"}}),
    (200, {"error": {"message": RATE, "type": "rate_limit_exceeded"}}),
    (200, {"error": {"message": "Overloaded", "type": "overloaded_error"}}),
    (200, {"error": {"message": "Provider returned error", "code": 502}}),
    (200, {"error": {"message": "high demand", "code": 503, "status": "UNAVAILABLE"}}),
    (200, {"error": "The model is overloaded, try again later"}),
    (200, {"object": "error", "message": "busy", "code": 503}),
    (200, {"choices": [{"error": {"message": "lost", "code": 502}}]}),
    (200, [{"error": EXHAUSTED}]),
    (429, {"message": RATE, "type": "tokens", "code": "rate_limit_exceeded"}),
    (429, [{"error": EXHAUSTED}]),
    (429, {"message": QUOTA, "code": 429, "status": "Too Many Requests"}),
    *((status, None) for status in (408, 409, 425, 429, 500, 503, 504, 524, 529)),
]
LASTING = [
    (200, {"error": {"message": "no more", "type": "insufficient_quota"}}),
    (200, {"error": {"message": QUOTA}}),
    (200, {"error": {"message": "no such model", "code": 404}}),
    (200, {"error": {"message": "it does not work"}}),
    (200, {"detail": "no such route"}),
    (429, {"message": QUOTA, "code": "insufficient_quota"}),
    (429, {"message": QUOTA, "type": "invalid_request"}),
    (429, "Insufficient balance"),
    (429, {"message": "Budget has been exceeded!"}),
    (429, {"error": "used all available credits"}),
    (429, {"message": "x", "code": "billing_not_active"}),
    (503, {"message": "x", "code": "insufficient_quota"}),
    (404, "404 page not found"),
    (404, {"errors": [{"message": "No route"}]}),
    *((status, None) for status in (400, 401, 402, 403, 404, 413, 422, 451)),
]


@pytest.mark.parametrize(
    ("status", "body", "transient"),
    [(*case, True) for case in TRANSIENT] + [(*case, False) for case in LASTING],
)
def test_only_transient_errors_are_worth_another_attempt(status, body, transient):
    attempt = read(body) if status == 200 else replies.refused(status, body, {})
    assert attempt.again == transient and attempt.text == ""
    inner = body[0] if isinstance(body, list) else body or "no message"
    if isinstance(inner, dict):
        inner = inner.get("error") or inner.get("choices", [{}])[0].get("error") or inner
    if isinstance(inner, dict):
        inner = inner.get("message") or inner.get("detail") or "No route"
    assert inner in attempt.failure
    if status != 200:
        assert not replies.refused(status, body, {"x-should-retry": "false"}).again


def test_an_error_repeats_what_a_router_quotes_in_it():
    error = {"message": "Provider returned error", "code": 400, "metadata": {"raw": "no images"}}
    assert "Provider returned error no images" in read({"error": error}).failure


# Waits --------------------------------------------------------------------------------------

DATE = "Wed, 21 Oct 2015 07:28:00 GMT"
LATER = "Wed, 21 Oct 2015 07:28:20 GMT"


def limit(name, remaining, reset):
    return {f"x-ratelimit-remaining-{name}": remaining, f"x-ratelimit-reset-{name}": reset}


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "20"}, 20.0),
        ({"retry-after": " 0.5 "}, 0.5),
        ({"retry-after": LATER, "date": DATE}, 20.0),
        ({"retry-after": "Wednesday, 21-Oct-15 07:28:20 GMT", "date": DATE}, 20.0),
        ({"retry-after": "Wed Oct 21 07:28:20 2015", "date": DATE}, 20.0),
        ({"retry-after": "Wed, 21 Oct 2015 09:28:20 +0200", "date": DATE}, 20.0),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "2"}, 2.0),
        ({"retry-after": "inf"}, float("inf")),
        (limit("requests", "0", "1m6.5s"), 66.5),
        (limit("requests", "0", "250ms") | limit("tokens", "0", "2s"), 2.0),
        (limit("requests", "7", "1h"), None),
        *(
            ({"retry-after": bad}, None)
            for bad in ("0", "-5", "nan", "", "soon", "21 Oct", "Wed, 99 Oct 2015 07:28:20 GMT")
        ),
        ({"retry-after": DATE, "date": LATER}, None),
        ({}, None),
    ],
)
def test_waits_that_endpoints_ask_for_are_understood(headers, seconds):
    assert requested_wait(headers) == (None if seconds is None else pytest.approx(seconds))


def test_a_date_counts_from_the_time_of_this_machine_without_one_of_the_endpoint():
    later = email.utils.formatdate(1005, usegmt=True)
    assert requested_wait({"retry-after": later}, now=1000) == 5
    later = email.utils.formatdate(time.time() + 20, usegmt=True)
    assert replies.refused(429, None, {"retry-after": later}).wait == pytest.approx(20, abs=2)


@given(st.text(max_size=30), st.sampled_from(["retry-after", "retry-after-ms", "date"]))
def test_no_header_raises(text, name):
    wait = requested_wait({"retry-after": LATER} | {name: text})
    assert wait is None or wait > 0


def test_an_error_may_contain_the_wait():
    details = [{"@type": "Help"}, {"@type": "RetryInfo", "retryDelay": "17.5s"}, "x"]
    assert replies.refused(429, [{"error": {"details": details}}], {}).wait == 17.5
    for bad in (None, "17s", [{"retryDelay": 17}], [{"retryDelay": {"seconds": 17}}], {"a": 1}):
        assert replies.refused(429, {"details": bad}, {}).wait is None
