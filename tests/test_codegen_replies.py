"""Replies of endpoints are understood, booked at their cost, and asked for again if that helps."""

import email.utils
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai_server import Reply, Server, tokens

from nanoevolve_jax.codegen.mutators import by_api, replies
from nanoevolve_jax.codegen.mutators.attempts import call
from nanoevolve_jax.codegen.mutators.budget import (
    Limits,
    allows,
    spent_by,
    total,
    worst_attempt,
    worst_call,
)
from nanoevolve_jax.codegen.mutators.patience import asked_wait, told_wait
from nanoevolve_jax.codegen.mutators.providers import Provider

PROMPT = "Proposal 3, try 1: rewrite the function `gate`.\n"
GOOD = Reply("an answer")


def answered(*replies, sleep=lambda seconds: None):
    """The answer of an endpoint that gives these replies in turn, the last one again and again."""

    def script(proposal, number, attempt):
        return replies[min(attempt, len(replies)) - 1]

    with Server(script) as server:
        provider = Provider(
            name="local",
            kind="api",
            model="small",
            base_url=server.url,
            dollars_in=2.0,
            dollars_out=10.0,
            max_output_tokens=500,
            retries=2,
            timeout_seconds=20.0,
        )
        answer = call(provider, PROMPT, by_api.asker(provider, PROMPT, {}), sleep=sleep)
    return answer, provider, server.requests.total()


USAGES = {
    "inside": ({"prompt_tokens": 30, "completion_tokens": 210, "total_tokens": 240}, (30, 210)),
    "inside, with details": (
        {
            "prompt_tokens": 30,
            "completion_tokens": 210,
            "total_tokens": 240,
            "completion_tokens_details": {"reasoning_tokens": 200},
        },
        (30, 210),
    ),
    "outside, in the total": (
        {"prompt_tokens": 30, "completion_tokens": 5, "total_tokens": 245},
        (30, 215),
    ),
    "outside, in the details": (
        {
            "prompt_tokens": 30,
            "completion_tokens": 5,
            "total_tokens": 35,
            "completion_tokens_details": {"reasoning_tokens": 210},
        },
        (30, 215),
    ),
    "details without a total": (
        {
            "prompt_tokens": 30,
            "completion_tokens": 15,
            "completion_tokens_details": {"reasoning_tokens": 10},
        },
        (30, 25),
    ),
    "a field of its own": (
        {"prompt_tokens": 30, "completion_tokens": 5, "reasoning_tokens": 210},
        (30, 215),
    ),
    "anthropic": (
        {
            "input_tokens": 10,
            "cache_creation_input_tokens": 15,
            "cache_read_input_tokens": 5,
            "output_tokens": 215,
        },
        (30, 215),
    ),
    "responses": (
        {
            "input_tokens": 30,
            "output_tokens": 215,
            "output_tokens_details": {"reasoning_tokens": 200},
            "total_tokens": 245,
        },
        (30, 215),
    ),
    "google": (
        {
            "promptTokenCount": 30,
            "candidatesTokenCount": 5,
            "thoughtsTokenCount": 210,
            "totalTokenCount": 245,
        },
        (30, 215),
    ),
    "google without a total": (
        {"prompt_token_count": 30, "candidates_token_count": 5, "thoughts_token_count": 210},
        (30, 215),
    ),
    "floats": ({"prompt_tokens": 30.0, "completion_tokens": 215.0}, (30, 215)),
    "null details": (
        {"prompt_tokens": 30, "completion_tokens": 5, "completion_tokens_details": None},
        (30, 5),
    ),
    "zeros": ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, (None, None)),
    "no output": ({"prompt_tokens": 30, "completion_tokens": 0, "total_tokens": 30}, (30, None)),
    "no input": ({"prompt_tokens": 0, "completion_tokens": 5, "total_tokens": 245}, (None, 245)),
    **{
        f"{value!r}": ({"prompt_tokens": 30, "completion_tokens": value}, (30, None))
        for value in (-5, float("nan"), float("inf"), "5", True, None, 2.5, 10**30, [5], {})
    },
    "nothing": ({}, (None, None)),
    "null": (None, (None, None)),
    "text": ("many", (None, None)),
    "a list": ([30, 5], (None, None)),
}


@pytest.mark.parametrize(("reported", "counted"), USAGES.values(), ids=USAGES)
def test_tokens_count_as_the_most_that_a_report_can_mean(reported, counted):
    answer, provider, _ = answered(GOOD._replace(usage=reported))
    worst = worst_attempt(provider, PROMPT)
    most = [w if c is None else c for c, w in zip(counted, worst, strict=True)]
    assert answer.failure is None and [answer.input_tokens, answer.output_tokens] == most
    assert answer.estimated == (None in counted)
    assert answer.dollars == pytest.approx(provider.dollars(*most))


PROVIDER = Provider(
    name="a",
    kind="api",
    model="m",
    base_url="http://localhost",
    dollars_in=3.0,
    dollars_out=11.0,
    max_output_tokens=700,
    retries=0,
)
MOST_IN, MOST_OUT = worst_attempt(PROVIDER, PROMPT)
bad = st.sampled_from([0, -1, None, True, "12", float("nan"), float("inf"), 10**40, [], {}])


@st.composite
def reports(draw):
    """What a call used, and one of the ways in which an endpoint may report it."""
    inputs = draw(st.integers(1, MOST_IN))
    output = draw(st.integers(1, MOST_OUT))
    thought = draw(st.integers(0, output - 1))
    written, both = output - thought, inputs + output
    ways = {
        "inside": {"prompt_tokens": inputs, "completion_tokens": output, "total_tokens": both},
        "total": {"prompt_tokens": inputs, "completion_tokens": written, "total_tokens": both},
        "details": {
            "prompt_tokens": inputs,
            "completion_tokens": written,
            "completion_tokens_details": {"reasoning_tokens": thought},
        },
        "anthropic": {"input_tokens": inputs, "output_tokens": output},
        "google": {
            "promptTokenCount": inputs,
            "candidatesTokenCount": written,
            "thoughtsTokenCount": thought,
            "totalTokenCount": both,
        },
    }
    way = draw(st.sampled_from(sorted(ways)))
    report = ways[way]
    names = sorted(report)
    if way in ("inside", "anthropic"):  # in the others, what is left may hide reasoning
        for name in draw(st.sets(st.sampled_from(names))):
            report[name] = draw(bad)
    elif draw(st.booleans()):
        report = dict.fromkeys(names, draw(bad))
    return inputs, output, report


@given(st.lists(reports(), max_size=8), st.integers(0, 6000), st.floats(0.0, 0.05))
def test_hard_limits_hold_whatever_is_reported(calls, most_tokens, most_dollars):
    """As long as no attempt uses more than an endpoint was allowed."""
    limits = Limits(tokens=most_tokens, dollars=most_dollars)
    answers, used_tokens, used_dollars = [], 0, 0.0
    for inputs, output, report in calls:
        worst = worst_call(PROVIDER, PROMPT)
        if allows(limits, spent_by(answers), total([]), worst):
            break
        body = json.dumps({"choices": [{"message": {"content": "x"}}], "usage": report})
        attempt = replies.read(body.encode(), {})
        answers.append(call(PROVIDER, PROMPT, lambda attempt=attempt: attempt))
        used_tokens += inputs + output
        used_dollars += PROVIDER.dollars(inputs, output)
    spent = spent_by(answers)
    assert used_tokens <= spent.tokens <= most_tokens or not answers
    assert used_dollars <= spent.dollars + 1e-12 and spent.dollars <= most_dollars + 1e-12


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.dictionaries(st.sampled_from(["code", "message", "text", "type", "x"]), inside)
    ),
    max_leaves=6,
)
replies_of_any_form = st.dictionaries(
    st.sampled_from(["choices", "error", "usage", "usageMetadata", "message", "object", "detail"]),
    json_values
    | st.lists(st.fixed_dictionaries({"message": st.fixed_dictionaries({"content": json_values})})),
)


@given(replies_of_any_form | json_values)
def test_no_reply_raises_and_each_is_a_text_or_a_failure(reply):
    attempt = replies.read(json.dumps(reply).encode(), {})
    assert bool(attempt.text.strip()) == (attempt.failure is None)
    for count in (attempt.input_tokens, attempt.output_tokens):
        assert count is None or (isinstance(count, int) and count > 0)


TEXT = {"type": "text", "text": "an answer"}
CONTENTS = {
    "text": "an answer",
    "a part": [TEXT],
    "two parts": [{"type": "text", "text": "an "}, {"type": "text", "text": "answer"}],
    "output text": [{"type": "output_text", "text": "an answer", "annotations": []}],
    "reasoning beside it": [{"type": "thinking", "thinking": [TEXT]}, TEXT],
    "reasoning text beside it": [{"type": "reasoning", "text": "a draft"}, TEXT],
    "strings": ["an ", "answer"],
    "an object": TEXT,
    "no type": [{"text": "an answer"}],
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_text_is_found_in_every_form_of_content(content):
    message = {"role": "assistant", "content": content, "reasoning_content": "<draft>"}
    answer, _, _ = answered(Reply(message=message))
    assert (answer.text, answer.failure) == ("an answer", None)


NO_TEXT = {
    "a refusal": ({"content": None, "refusal": "I cannot"}, "stop", "the model refuses: I cannot"),
    "a part that refuses": (
        {"content": [{"type": "refusal", "refusal": "I cannot"}]},
        "stop",
        "the model refuses: I cannot",
    ),
    "a tool": ({"content": None, "tool_calls": [{"id": "1"}]}, "tool_calls", "it calls a tool"),
    "reasoning alone": ({"content": None, "reasoning_content": "hm"}, "stop", "reasoning alone"),
    "an image": ({"content": [{"type": "image_url", "image_url": {}}]}, "stop", "holds no text"),
    "null": ({"content": None}, "stop", "finish_reason 'stop'"),
    "cut off": ({"content": "half an answer"}, "length", "cut off at max_output_tokens"),
    "cut off, in capitals": ({"content": "half"}, "MAX_TOKENS", "cut off at max_output_tokens"),
    "filtered": ({"content": "half"}, "content_filter", "cut off by a content filter"),
    "unsafe": ({"content": "half"}, "SAFETY", "cut off by a content filter"),
    "other reasoning alone": ({"content": "", "reasoning": "hm"}, "stop", "reasoning alone"),
}


@pytest.mark.parametrize(("message", "reason", "words"), NO_TEXT.values(), ids=NO_TEXT)
def test_what_is_not_an_answer_is_a_failure_that_says_why(message, reason, words):
    answer, _, asked = answered(Reply(message=message, finish_reason=reason))
    assert words in answer.failure and answer.text == ""
    assert (asked, answer.requests) == (1, 1)


USED = {"prompt_tokens": 30, "completion_tokens": 5}
PARTS = [
    {"choices": [{"delta": {"role": "assistant", "content": None}, "finish_reason": None}]},
    *({"choices": [{"delta": {"content": text}}], "usage": None} for text in ("an ", "answer")),
    {"choices": [{"delta": {}, "finish_reason": "stop"}]},
    {"choices": [], "usage": USED},
]


def sent(parts, form="data: {}\n\n", end="data: [DONE]\n\n"):
    return ("".join(form.format(json.dumps(part)) for part in parts) + end).encode()


WHOLE = {"choices": [{"message": {"content": "an answer"}}], "usage": USED}
EVENTS = {
    "events": sent(PARTS),
    "events with comments": b": wait\r\n\r\n" + sent(PARTS, "event: part\r\ndata:{}\r\n\r\n"),
    "events without an end mark": sent(PARTS, end=""),
    "a reply with an end mark": sent([WHOLE], "{}\n\n"),
    "a reply after blank lines": b"\n\n\n" + json.dumps(WHOLE).encode(),
}


@pytest.mark.parametrize("body", EVENTS.values(), ids=EVENTS)
def test_an_answer_in_events_is_put_together(body):
    answer, _, asked = answered(Reply(body=body))
    assert (answer.text, answer.failure, asked) == ("an answer", None, 1)
    assert (answer.input_tokens, answer.output_tokens) == (30, 5)


def test_events_that_break_off_or_hold_an_error_are_no_answer():
    for parts in (PARTS[:3], [*PARTS[:3], {"error": {"message": "lost", "code": 502}}]):
        answer, _, asked = answered(Reply(body=sent(parts)), GOOD)
        assert (answer.text, answer.requests, asked) == ("an answer", 2, 2)
    for body in (b"<!doctype html>", b"data: [DONE]", b"data: 1\ndata: 2", b"\xff"):
        assert "not JSON" in replies.read(body, {}).failure


def error(**fields) -> bytes:
    return json.dumps({"error": fields}).encode()


QUOTA = "You exceeded your current quota, please check your plan and billing details."
RATE = "Rate limit reached. Add a payment method at https://host/account/billing to raise it."
EXHAUSTED = error(code=429, message=QUOTA, status="RESOURCE_EXHAUSTED")
PASSES = {
    "rate limit": Reply(body=error(message="slow down", code=429)),
    "rate limit as text": Reply(body=error(message="slow down", code="429")),
    "rate limit by name": Reply(body=error(message=RATE, type="rate_limit_exceeded")),
    "overloaded": Reply(body=error(message="Overloaded", type="overloaded_error")),
    "a gateway": Reply(body=error(message="Provider returned error", code=502)),
    "unavailable": Reply(body=error(message="high demand", code=503, status="UNAVAILABLE")),
    "a message": Reply(body=b'{"error": "The model is overloaded, try again later"}'),
    "an object": Reply(body=b'{"object": "error", "message": "busy", "code": 503}'),
    "in a choice": Reply(body=b'{"choices": [{"error": {"message": "lost", "code": 502}}]}'),
    "status 429 about billing": Reply(
        status=429, body=error(message=RATE, type="tokens", code="rate_limit_exceeded")
    ),
    "status 529": Reply("overloaded", status=529),
    "status 429, a list": Reply(status=429, body=b"[%s]" % EXHAUSTED),
    "a list": Reply(body=b"[%s]" % EXHAUSTED),
    "status 429 in words": Reply(
        status=429, body=error(message=QUOTA, code=429, status="Too Many Requests")
    ),
    **{f"status {status}": Reply(status=status) for status in (408, 409, 425, 429, 500, 504, 524)},
}
STAYS = {
    "quota": Reply(body=error(message="no more", type="insufficient_quota")),
    "quota by message": Reply(body=error(message=QUOTA)),
    "status 429, quota": Reply(status=429, body=error(message=QUOTA, code="insufficient_quota")),
    "status 429, message": Reply(status=429, body=error(message=QUOTA, type="invalid_request")),
    "status 429, text": Reply(status=429, body=b"Insufficient balance"),
    "status 429, budget": Reply(status=429, body=error(message="Budget has been exceeded!")),
    "status 429, credits": Reply(status=429, body=b'{"error": "used all available credits"}'),
    "status 429, billing": Reply(status=429, body=error(message="x", code="billing_not_active")),
    "status 503, quota": Reply(status=503, body=error(message="x", code="insufficient_quota")),
    "status 500, on request": Reply(status=500, headers={"x-should-retry": "false"}),
    "status 404, text": Reply(status=404, body=b"404 page not found"),
    "status 404, another form": Reply(status=404, body=b'{"errors": [{"message": "No route"}]}'),
    "a bad request": Reply(body=error(message="no such model", code=404)),
    "who knows": Reply(body=error(message="it does not work")),
    "a detail": Reply(body=b'{"detail": "no such route"}'),
    **{f"status {code}": Reply(status=code) for code in (400, 401, 402, 403, 404, 413, 422, 451)},
}


@pytest.mark.parametrize("reply", PASSES.values(), ids=PASSES)
def test_errors_that_pass_are_tried_again(reply):
    answer, _, asked = answered(reply, GOOD)
    assert (answer.text, answer.failure, asked) == ("an answer", None, 2)


@pytest.mark.parametrize("reply", STAYS.values(), ids=STAYS)
def test_errors_that_stay_are_not_tried_again(reply):
    answer, _, asked = answered(reply, GOOD)
    assert asked == 1 and answer.text == ""


@pytest.mark.parametrize("reply", [*PASSES.values(), *STAYS.values()], ids=[*PASSES, *STAYS])
def test_errors_keep_their_message(reply):
    answer, _, _ = answered(reply)
    body = json.loads(reply.body) if (reply.body or b"")[:1] in (b"{", b"[") else {}
    body = body[0] if isinstance(body, list) else body
    inner = body.get("error") or body.get("choices", [{}])[0].get("error") or body
    message = inner if isinstance(inner, str) else inner.get("message") or inner.get("detail")
    assert (message or (reply.body or b"").decode() or reply.text or "status") in answer.failure


@pytest.mark.parametrize("reason", ["error", "network_error", "insufficient_system_resource"])
def test_a_text_that_broke_off_is_no_answer_but_is_paid_and_asked_for_again(reason):
    answer, _, asked = answered(Reply("half an ans", finish_reason=reason), GOOD)
    assert (answer.text, asked, answer.requests) == ("an answer", 2, 2)
    answer, _, _ = answered(Reply("half an ans", finish_reason=reason))
    assert answer.text == "" and f"broke off (finish_reason {reason!r})" in answer.failure


def test_an_error_says_what_a_router_quotes_in_it():
    said = {"message": "Provider returned error", "code": 400, "metadata": {"raw": "no images"}}
    answer, _, _ = answered(Reply(body=error(**said)))
    assert "Provider returned error no images" in answer.failure


def test_a_gateway_that_gave_up_waiting_may_have_been_paid():
    for status in (502, 504, 520, 524):
        assert replies.refused(status, None, {}).paid


def test_an_error_in_a_reply_costs_what_it_reports_and_else_the_most():
    used = {"prompt_tokens": 30, "completion_tokens": 5, "total_tokens": 35}
    for reply, cost in [
        ({"error": {"message": "lost", "code": 500}, "usage": used}, (30, 5, 1)),
        ({"error": {"message": "lost"}}, (MOST_IN, None, 1)),
        ({"error": {"message": "slow down", "code": 429}}, (0, 0, 0)),
        ({"error": {"message": "no more", "type": "insufficient_quota"}}, (0, 0, 0)),
        ({"error": {"message": "no such model", "code": 404}}, (0, 0, 0)),
    ]:
        attempt = replies.read(json.dumps(reply).encode(), {})._replace(again=False)
        answer = call(PROVIDER, PROMPT, lambda attempt=attempt: attempt)
        output = MOST_OUT if cost[1] is None else cost[1]
        assert (answer.input_tokens, answer.output_tokens) == (cost[0], output)
        assert answer.requests == cost[2]


DATE = "Wed, 21 Oct 2015 07:28:00 GMT"
LATER = "Wed, 21 Oct 2015 07:28:20 GMT"
WAITS = {
    "seconds": ({"retry-after": "20"}, 20.0),
    "a fraction": ({"retry-after": " 0.5 "}, 0.5),
    "a date": ({"retry-after": LATER, "date": DATE}, 20.0),
    "a date of RFC 850": ({"retry-after": "Wednesday, 21-Oct-15 07:28:20 GMT", "date": DATE}, 20.0),
    "a date of asctime": ({"retry-after": "Wed Oct 21 07:28:20 2015", "date": DATE}, 20.0),
    "another zone": ({"retry-after": "Wed, 21 Oct 2015 09:28:20 +0200", "date": DATE}, 20.0),
    "milliseconds": ({"retry-after-ms": "1500"}, 1.5),
    "milliseconds first": ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
    "bad milliseconds": ({"retry-after-ms": "soon", "retry-after": "2"}, 2.0),
    "for ever": ({"retry-after": "inf"}, float("inf")),
    "an exhausted limit": (
        {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m6.5s"},
        66.5,
    ),
    "two exhausted limits": (
        {
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": "250ms",
            "x-ratelimit-remaining-tokens": "0",
            "x-ratelimit-reset-tokens": "2s",
        },
        2.0,
    ),
    "a limit that is not exhausted": (
        {"x-ratelimit-remaining-requests": "7", "x-ratelimit-reset-requests": "1h"},
        None,
    ),
    **{
        f"{bad!r}": ({"retry-after": bad}, None)
        for bad in ("0", "-5", "nan", "-inf", "", "soon", "21 Oct", "Wed, 99 Oct 2015 07:28:20 GMT")
    },
    "the past": ({"retry-after": DATE, "date": LATER}, None),
    "nothing": ({}, None),
}


@pytest.mark.parametrize(("headers", "seconds"), WAITS.values(), ids=WAITS)
def test_waits_that_endpoints_ask_for_are_understood(headers, seconds):
    found = asked_wait(headers)
    assert found == (None if seconds is None else pytest.approx(seconds))


def test_a_date_counts_from_the_time_of_this_machine_without_one_of_the_endpoint():
    assert asked_wait({"retry-after": email.utils.formatdate(1005, usegmt=True)}, now=1000) == 5


@given(st.text(max_size=30), st.sampled_from(["retry-after", "retry-after-ms", "date"]))
def test_no_header_raises(text, name):
    wait = asked_wait({"retry-after": LATER} | {name: text})
    assert wait is None or wait > 0


@pytest.mark.parametrize("name", ["retry-after-ms", "Retry-After", "a date"])
def test_an_endpoint_is_given_the_time_it_asks_for(name):
    slept = []
    date = email.utils.formatdate(time.time() + 20, usegmt=True)
    headers = {"Retry-After": date} if name == "a date" else {name: "20"}
    answer, _, _ = answered(Reply(status=429, headers=headers), GOOD, sleep=slept.append)
    assert answer.failure is None
    assert slept == [pytest.approx(0.02 if name == "retry-after-ms" else 20.0, abs=2.0)]


def test_an_error_may_hold_the_time_that_it_asks_for():
    details = [{"@type": "Help"}, {"@type": "RetryInfo", "retryDelay": "17.5s"}, "x"]
    attempt = replies.refused(429, [{"error": {"details": details}}], {})
    assert attempt.wait == 17.5
    for bad in (None, "17s", [{"retryDelay": 17}], [{"retryDelay": {"seconds": 17}}], {"a": 1}):
        assert told_wait(bad) is None


def test_an_endpoint_that_asks_for_more_time_than_a_profile_grants_is_left():
    date = email.utils.formatdate(time.time() + 7200, usegmt=True)
    answer, _, asked = answered(Reply(status=429, retry_after=date), GOOD)
    assert asked == 1 and "s of patience" in answer.failure


def test_the_scripted_endpoint_reports_what_it_counts():
    answer, _, _ = answered(GOOD)
    assert (answer.input_tokens, answer.output_tokens) == (tokens(PROMPT), tokens("an answer"))
