"""Limits hold whatever happens: what may be spent is at least what is."""

import math

from hypothesis import given
from hypothesis import strategies as st

from nanoevolve_jax.codegen.mutators.attempts import Attempt, call, pause_before
from nanoevolve_jax.codegen.mutators.budget import (
    BYTES_A_TOKEN,
    COMPLAINT_BYTES,
    Limits,
    Spent,
    allows,
    prompt_tokens,
    spent_by,
    total,
    worst_call,
    worst_proposal,
)
from nanoevolve_jax.codegen.mutators.prompts import complaint
from nanoevolve_jax.codegen.mutators.providers import Provider

PROVIDER = Provider(
    name="a",
    kind="api",
    model="m",
    base_url="http://localhost",
    dollars_in=3.0,
    dollars_out=11.0,
    dollars_call=0.01,
    max_output_tokens=700,
    retries=2,
    timeout_seconds=30.0,
    backoff_seconds=1.0,
    backoff_max_seconds=7.0,
)
amounts = st.builds(
    Spent,
    st.integers(0, 1000),
    st.integers(0, 10**9),
    st.floats(0.0, 1e4),
    st.floats(0.0, 1e6),
)
limits = st.builds(Limits, *[st.floats(0.0, 1e6)] * 4)


@given(limits, amounts, amounts, amounts)
def test_a_call_is_allowed_if_no_limit_can_break(limit, spent, reserved, worst):
    sums = [math.fsum(parts) for parts in zip(spent, reserved, worst, strict=True)]
    fits = all(amount <= most for amount, most in zip(sums, limit, strict=True))
    words = allows(limit, spent, reserved, worst)
    assert (words is None) == fits
    assert fits or words.startswith("limit of ")


def test_a_limit_can_be_reached_and_not_passed():
    limit = Limits(calls=10)
    assert allows(limit, Spent(calls=6), Spent(calls=2), Spent(calls=2)) is None
    assert "limit of calls: 10; 6 spent" in allows(
        limit, Spent(calls=6), Spent(calls=2), Spent(calls=3)
    )


@given(st.lists(amounts, max_size=20), st.randoms())
def test_sums_do_not_depend_on_the_order(parts, random):
    shuffled = list(parts)
    random.shuffle(shuffled)
    assert total(parts) == total(shuffled)


attempts = st.builds(
    Attempt,
    text=st.just("x"),
    input_tokens=st.none() | st.integers(0, prompt_tokens("prompt")),
    output_tokens=st.none() | st.integers(0, PROVIDER.max_output_tokens),
    dollars=st.none() | st.just(0.005),
    failure=st.none() | st.just("failed"),
    paid=st.booleans(),
    again=st.booleans(),
    wait=st.none() | st.floats(0.0, 100.0),
)


@given(st.lists(attempts, min_size=3, max_size=3), st.floats(0.0, 0.999))
def test_no_call_costs_more_than_its_worst_case(made, jitter):
    now = [0.0]
    queue = iter(made)

    def attempt():
        now[0] += PROVIDER.timeout_seconds
        return next(queue)

    def sleep(seconds):
        now[0] += seconds

    answer = call(
        PROVIDER, "prompt", attempt, sleep=sleep, clock=lambda: now[0], draw=lambda: jitter
    )
    worst = worst_call(PROVIDER, "prompt")
    assert all(a <= b + 1e-9 for a, b in zip(spent_by([answer]), worst, strict=True))
    done = made[: len(made) - len(list(queue))]
    assert answer.requests == sum(a.paid for a in done)
    assert answer.failure is None or done[-1].failure is not None
    assert all(a.failure and a.again for a in done[:-1])


def test_pauses_double_up_to_a_limit_with_jitter():
    assert [pause_before(PROVIDER, n, None, 0.0) for n in range(5)] == [1, 2, 4, 7, 7]
    assert pause_before(PROVIDER, 2, None, 0.5) == 3.0
    assert pause_before(PROVIDER, 0, 5.0, 0.5) == 5.0
    assert pause_before(PROVIDER, 0, 8.0, 0.5) is None


@given(st.text(max_size=400))
def test_tokens_of_a_prompt_are_not_underestimated(text):
    assert prompt_tokens(text) >= len(text.encode(errors="replace")) / BYTES_A_TOKEN


@given(st.text(max_size=50), st.integers(1, 30_000), st.text(max_size=3000))
def test_a_second_prompt_is_never_longer_than_was_reckoned(piece, times, wrong):
    first = "Proposal 1, try 1: rewrite.\n\nAs follows.\n"
    second = complaint(first, (piece or "\n") * times, wrong)
    assert len(second.encode(errors="replace")) <= len(first.encode()) + COMPLAINT_BYTES
    assert worst_proposal(PROVIDER, first).tokens >= (
        worst_call(PROVIDER, first).tokens + worst_call(PROVIDER, second).tokens
    )
