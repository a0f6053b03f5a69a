"""The header dialects, read back with the formulas of the clients that live by them."""

from __future__ import annotations

import email.utils
import math
import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core import limit_headers
from gateway.core.limit_headers import (
    GITLAB_SET,
    NOMINAL_PER_MINUTE,
    LimitHeaders,
    merge_limit_fields,
    replace_limit_fields,
    whole_wait_s,
)
from gateway.core.limit_plan import Limits
from gateway.core.limits import BucketState, Decision, Limit, Scope, Take, Takes, bucket_state
from gateway.core.messages import Fields
from gateway.core.plain_takes import admitted, refuse

Merge = Callable[..., Fields]

NOW = 1_800_000_000.25
CALLER = Limit("caller", Scope.CALLER, 10.0, 200.0)
TEAM = Limit("team", Scope.TEAM, 20000 / 3600, 1000.0, period_s=3600.0)
SHADOW = Limit("tighter", Scope.CALLER, 1.0, 5.0, shadow=True)
HEADERS = LimitHeaders(Limits.compile([TEAM, CALLER, SHADOW]), key=b"pepper")


def decision(*states: BucketState, now: float = NOW) -> Decision:
    return Decision(all(found.allowed or found.limit.shadow for found in states), states, now)


def allowed(limit: Limit = CALLER, remaining: float = 187.5) -> BucketState:
    return bucket_state(limit, True, remaining, 1.0)


def refused(limit: Limit = CALLER, tokens: float = 0.25) -> BucketState:
    return bucket_state(limit, False, tokens, 1.0)


def read(fields: Fields) -> dict[str, str]:
    assert len({name.lower() for name, _ in fields}) == len(fields), "a field is sent twice"
    return {name.decode(): value.decode() for name, value in fields}


# GitLab's set


def test_success() -> None:
    assert read(HEADERS.fields_for(decision(allowed()), "backstage")) == {
        "RateLimit-Limit": "600",
        "RateLimit-Name": "caller",
        "RateLimit-Observed": "13",
        "RateLimit-Remaining": "187",
        "RateLimit-Reset": "1800000002",
        "RateLimit-Policy": f'"caller";q=600;w=60;pk=:{partition()}:',
        "RateLimit": f'"caller";r=187;t=2;pk=:{partition()}:',
    }


def partition(caller: str = "backstage") -> str:
    sent = dict(HEADERS.fields_for(decision(allowed()), caller))[b"RateLimit"].decode()
    found = re.search(r";pk=:([A-Za-z0-9+/=]+):", sent)
    assert found is not None
    return found[1]


def test_refusal() -> None:
    assert read(HEADERS.fields_for(decision(refused()), "backstage")) == {
        "RateLimit-Limit": "600",
        "RateLimit-Name": "caller",
        "RateLimit-Observed": "200",
        "RateLimit-Remaining": "0",
        "RateLimit-Reset": "1800000002",
        "RateLimit-ResetTime": "Fri, 15 Jan 2027 08:00:02 GMT",
        "Retry-After": "1",
        "RateLimit-Policy": f'"caller";q=600;w=60;pk=:{partition()}:',
        "RateLimit": f'"caller";r=0;t=1;pk=:{partition()}:',
    }


def test_the_limit_is_the_callers_whatever_is_tight() -> None:
    sent = read(HEADERS.fields_for(decision(allowed(TEAM, 3.0), allowed()), "backstage"))
    assert sent["RateLimit-Limit"] == "600"
    assert (sent["RateLimit-Name"], sent["RateLimit-Remaining"], sent["RateLimit-Observed"]) == ("team", "3", "997")
    sent = read(HEADERS.fields_for(decision(refused(TEAM), allowed()), "backstage"))
    assert (sent["RateLimit-Limit"], sent["RateLimit-Name"]) == ("600", "team")


def test_a_caller_is_sent_a_limit_that_applies_to_it() -> None:
    assert read(HEADERS.fields_for(decision(allowed(TEAM)), "someone"))["RateLimit-Limit"] == "334"


def test_what_applies_may_change_for_one_caller() -> None:
    for _ in range(2):
        assert "team" not in read(HEADERS.fields_for(decision(allowed()), "moved"))["RateLimit-Policy"]
        assert "team" in read(HEADERS.fields_for(decision(allowed(), allowed(TEAM)), "moved"))["RateLimit-Policy"]
        assert "team" in read(HEADERS.fields_for(decision(allowed(TEAM)), "moved"))["RateLimit-Policy"]


def test_shadow_limits_are_never_sent() -> None:
    sent = HEADERS.fields_for(decision(allowed(), refused(SHADOW)), "backstage")
    assert b"tighter" not in b"".join(value for _, value in sent)
    assert HEADERS.fields_for(decision(refused(SHADOW)), "backstage") == HEADERS.nominal()


def test_without_limits_a_nominal_one() -> None:
    none = LimitHeaders(Limits.compile([]), key=b"pepper")
    assert none.nominal() == ((b"RateLimit-Limit", b"%d" % NOMINAL_PER_MINUTE),)
    assert none.fields_for(Decision(True, (), NOW), "backstage") == none.nominal()


def test_the_probe_is_sent_the_default_caller_limit() -> None:
    assert read(HEADERS.nominal()) == {"RateLimit-Limit": "600"}


def test_an_outage_that_refuses_has_no_numbers() -> None:
    closed = Decision(False, (), NOW, degraded=True, unavailable=True)
    assert HEADERS.fields_for(closed, "backstage") == HEADERS.nominal()


# The IETF fields


def test_every_enforced_limit_is_sent_by_itself() -> None:
    sent = read(HEADERS.fields_for(decision(allowed(TEAM, 900.0), allowed(), allowed(SHADOW, 1.0)), "backstage"))
    key = partition()
    assert sent["RateLimit-Policy"] == f'"team";q=20000;w=3600;pk=:{key}:, "caller";q=600;w=60;pk=:{key}:'
    assert sent["RateLimit"] == f'"team";r=900;t=18;pk=:{key}:, "caller";r=187;t=2;pk=:{key}:'


def test_the_partition_key_is_keyed_short_and_per_caller() -> None:
    assert partition("backstage") == partition("backstage") != partition("renovate")
    assert len(partition()) == 8
    other = LimitHeaders(Limits.compile([CALLER]), key=b"another")
    assert partition() not in read(other.fields_for(decision(allowed()), "backstage"))["RateLimit"]


def test_retry_after_is_never_earlier_than_t() -> None:
    sent = read(HEADERS.fields_for(decision(refused(TEAM, 0.0), refused(CALLER, 0.99)), "backstage"))
    assert max(int(found) for found in re.findall(r";t=(\d+)", sent["RateLimit"])) <= int(sent["Retry-After"])


def test_memory_is_bounded_by_callers() -> None:
    headers = LimitHeaders(Limits.compile([CALLER]), key=b"pepper")
    for number in range(5000):
        headers.fields_for(decision(allowed()), f"bot-{number}")
    assert len(headers._caller_fields) <= 4096


def test_memory_is_bounded_by_names() -> None:
    for number in range(5000):
        assert not limit_headers._is_limit[b"x-%d" % number]
    assert 0 < len(limit_headers._is_limit) <= 4096


# As clients read them


@settings(max_examples=100, deadline=None)
@given(st.floats(0.0001, 1e6), st.floats(1, 1e8), st.floats(0, 1), st.floats(1e9, 4e9), st.booleans())
def test_every_client_can_read_every_answer(rate: float, burst: float, level: float, now: float, short: bool) -> None:
    limit = Limit("l", Scope.CALLER, rate, burst)
    headers = LimitHeaders(Limits.compile([limit]), key=b"")
    found = bucket_state(limit, not short, level * (0.999 if short else burst), 1.0)
    sent = read(headers.fields_for(decision(found, now=now), "c"))
    # client-go: a limiter of two thirds of the limit, from the first answer.
    assert int(sent["RateLimit-Limit"]) / 60 * 0.66 > 0
    # Structured Fields hold at most fifteen digits.
    assert all(len(number) <= 15 for value in sent.values() for number in re.findall(r"\d+", value))
    assert int(sent["RateLimit-Reset"]) >= now
    if short:
        # python-gitlab: int(), and no wait is no wait.
        assert int(sent["Retry-After"]) >= 1
        assert int(sent["Retry-After"]) >= min(found.retry_after_s, 366 * 86400) - 1e-5
        # client-go: sleeps until Reset as Unix time; gitlab-runner: until ResetTime.
        assert int(sent["RateLimit-Reset"]) - now >= min(found.retry_after_s, 366 * 86400) - 1e-5
        reset = email.utils.parsedate_to_datetime(sent["RateLimit-ResetTime"])
        assert reset.timestamp() == int(sent["RateLimit-Reset"])
        assert sent["RateLimit-Remaining"] == "0"
    else:
        assert 0 <= int(sent["RateLimit-Remaining"]) <= burst


@pytest.mark.parametrize(
    ("seconds", "whole"),
    [(0.0, 1), (0.2, 1), (1.0, 1), (1.0000000001, 1), (1.01, 2), (math.inf, 366 * 86400)],
)
def test_whole_waits(seconds: float, whole: int) -> None:
    assert whole_wait_s(min(seconds, 1e12)) == whole


# Beside GitLab's own set

OURS = HEADERS.fields_for(decision(allowed()), "backstage")
BODY: Fields = ((b"Content-Type", b"application/json"), (b"ETag", b'W/"1"'))


def gitlab(limit: bytes = b"120", remaining: bytes = b"100", reset: bytes = b"1800000060") -> Fields:
    return (
        (b"ratelimit-limit", limit),
        (b"RateLimit-Name", b"throttle_authenticated_api"),
        (b"RateLimit-Observed", b"20"),
        (b"RateLimit-Remaining", remaining),
        (b"RateLimit-Reset", reset),
    )


def merged_by_stricter(upstream: Fields, status: int = 200, ours: Fields = OURS) -> Fields:
    return merge_limit_fields(ours, upstream, status=status, now=NOW)


@pytest.mark.parametrize(
    ("upstream", "kept"),
    [
        pytest.param(gitlab(), gitlab(), id="theirs-is-lower"),
        pytest.param(gitlab(limit=b"601"), OURS, id="ours-is-lower"),
        pytest.param(gitlab(limit=b"600", remaining=b"5"), gitlab(limit=b"600", remaining=b"5"), id="equal-less-remains"),
        pytest.param(gitlab(limit=b"600", remaining=b"190"), OURS, id="equal-more-remains"),
        pytest.param((), OURS, id="theirs-is-absent"),
        pytest.param(gitlab()[:1], OURS, id="theirs-is-partial"),
        pytest.param(gitlab(limit=b"0"), OURS, id="theirs-is-zero"),
        pytest.param(gitlab(limit=b"60, 600"), OURS, id="theirs-is-a-list"),
        pytest.param(gitlab(limit=b"-1"), OURS, id="theirs-is-negative"),
        pytest.param(gitlab(limit=b"\xb2"), OURS, id="theirs-is-no-ascii-digit"),
        pytest.param(gitlab() + gitlab(), OURS, id="theirs-is-there-twice"),
    ],
)
def test_the_stricter_set_as_a_unit(upstream: Fields, kept: Fields) -> None:
    assert merged_by_stricter(BODY + upstream) == BODY + kept


def test_a_nominal_set_yields_to_gitlabs() -> None:
    nominal = HEADERS.nominal()
    assert merged_by_stricter(BODY + gitlab(limit=b"9000"), ours=nominal) == BODY + gitlab(limit=b"9000")
    assert merged_by_stricter(BODY, ours=nominal) == BODY + nominal


def test_gitlabs_refusal_keeps_gitlabs_numbers() -> None:
    refusal = (*gitlab(limit=b"9000", remaining=b"0"), (b"Retry-After", b"37"))
    assert merged_by_stricter(BODY + refusal, 429) == BODY + refusal


def test_ietf_fields_from_upstream_are_not_passed_beside_another_set() -> None:
    upstream = (*gitlab(), (b"RateLimit", b'"x";r=1'), (b"RateLimit-Policy", b'"x";q=1'))
    assert merged_by_stricter(upstream) == gitlab()
    assert replace_limit_fields(OURS, upstream, status=200, now=NOW) == OURS


@pytest.mark.parametrize("merge", [merge_limit_fields, replace_limit_fields])
def test_an_application_limits_refusal_bends_our_set_to_its_retry_after(merge: Merge) -> None:
    sent = read(merge(OURS, ((b"retry-after", b"60"),), status=429, now=NOW))
    assert sent["retry-after"] == "60"
    assert sent["RateLimit-Limit"] == "600"
    assert sent["RateLimit-Remaining"] == "0"
    assert int(sent["RateLimit-Reset"]) == math.ceil(NOW) + 60
    assert sent["RateLimit-ResetTime"] == "Fri, 15 Jan 2027 08:01:01 GMT"
    assert "RateLimit" not in sent


@pytest.mark.parametrize("retry_after", [(), ((b"Retry-After", b"Fri, 15 Jan 2027 08:01:01 GMT"),)])
def test_a_refusal_without_a_readable_wait_leaves_our_set(retry_after: Fields) -> None:
    assert replace_limit_fields(OURS, retry_after, status=429, now=NOW) == retry_after + OURS


def test_a_brokered_caller_never_reads_the_shared_credentials_numbers() -> None:
    merged = replace_limit_fields(OURS, BODY + gitlab(limit=b"1", remaining=b"0"), status=200, now=NOW)
    assert merged == BODY + OURS
    assert sum(name.lower() in GITLAB_SET for name, _ in merged) == 5


# Requests in progress, and debts

PLACES = Limit("places", Scope.CALLER, 20.0, 20.0, 1.0, concurrent=True)
WITH_PLACES = LimitHeaders(Limits.compile([PLACES, CALLER]), key=b"pepper")
ONLY_PLACES = LimitHeaders(Limits.compile([PLACES]), key=b"pepper")


def test_places_are_sent_in_their_own_unit_and_never_as_the_quota() -> None:
    sent = read(WITH_PLACES.fields_for(decision(allowed(PLACES, 3.0), allowed()), "backstage"))
    assert (sent["RateLimit-Limit"], sent["RateLimit-Name"], sent["RateLimit-Remaining"]) == ("600", "caller", "187")
    assert sent["RateLimit-Policy"].startswith('"places";q=20;qu="concurrent-requests";pk=:')
    assert re.fullmatch(r'"places";r=3;pk=:[^:]+:, "caller";r=187;t=2;pk=:[^:]+:', sent["RateLimit"])


def test_a_refusal_for_want_of_a_place() -> None:
    sent = read(WITH_PLACES.fields_for(decision(refused(PLACES, 0.0), allowed()), "backstage"))
    assert (sent["RateLimit-Name"], sent["RateLimit-Remaining"], sent["Retry-After"]) == ("places", "0", "1")
    assert sent["RateLimit-Limit"] == "600"
    assert sent["RateLimit"].startswith('"places";r=0;pk=:')


def test_with_places_alone_the_quota_is_nominal() -> None:
    assert ONLY_PLACES.fields_for(decision(allowed(PLACES, 3.0)), "backstage") == ONLY_PLACES.nominal()
    sent = read(ONLY_PLACES.fields_for(decision(refused(PLACES, 0.0)), "backstage"))
    assert sent["RateLimit-Limit"] == str(NOMINAL_PER_MINUTE)


def test_a_debt_is_sent_as_nothing_left() -> None:
    sent = read(HEADERS.fields_for(decision(allowed(CALLER, -30.0)), "backstage"))
    assert (sent["RateLimit-Remaining"], sent["RateLimit-Observed"]) == ("0", "200")
    assert '"caller";r=0;' in sent["RateLimit"]


# As lines

EVERY = LimitHeaders(Limits.compile([PLACES, TEAM, CALLER, SHADOW]), key=b"pepper %d")
STATES = st.lists(
    st.builds(
        lambda limit, share, short: bucket_state(limit, not short, min(1.0, share) * (0.9 if short else limit.burst), 1.0),
        st.sampled_from([PLACES, TEAM, CALLER, SHADOW]),
        st.floats(-0.5, 1.0),
        st.booleans(),
    ),
    max_size=4,
    unique_by=lambda found: found.limit.id,
)


@settings(max_examples=200, deadline=None)
@given(
    STATES.filter(lambda states: any(not found.allowed and not found.limit.shadow for found in states)),
    st.lists(st.tuples(st.floats(0.0, 3.0), st.floats(-0.4, 0.4)), min_size=2, max_size=8),
)
def test_who_asks_again_and_again_is_sent_the_present_numbers(
    states: list[BucketState], moments: list[tuple[float, float]]
) -> None:
    now = 1e9
    for later, more in moments:
        now += later
        moved = [bucket_state(found.limit, found.allowed, found.remaining + more, 1.0) for found in states]
        made = decision(*moved, now=now)
        fields = EVERY.fields_for(made, "backstage")
        assert EVERY.lines_for(made, "backstage") == b"".join(name + b": " + value + b"\r\n" for name, value in fields)


@settings(max_examples=200, deadline=None)
@given(STATES, st.sampled_from(["backstage", "b%d"]), st.floats(1e9, 4e9))
def test_the_lines_are_the_fields(states: list[BucketState], caller: str, now: float) -> None:
    made = decision(*states, now=now)
    fields = EVERY.fields_for(made, caller)
    assert EVERY.lines_for(made, caller) == b"".join(name + b": " + value + b"\r\n" for name, value in fields)


# Of plain takes, sent again and again

PLAIN = Takes([Take("t", TEAM), Take("c", CALLER, 2.5)])
SHARES = st.one_of(st.just(1.0), st.floats(0.0, 1.0))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(SHARES, SHARES, st.sampled_from([0.0, 0.25, 1.0, 1e5]), st.sampled_from(["backstage", "b%d"])), max_size=6
    ),
    st.floats(1e9, 4e9),
)
def test_what_did_not_change_is_sent_as_if_it_were_new(history: list[tuple[float, float, float, str]], now: float) -> None:
    for team, caller, later, who in history:
        now += later
        lefts = [team * TEAM.burst, caller * CALLER.burst]
        plainly = admitted(PLAIN, lefts, now)
        each = decision(
            *[bucket_state(take.limit, True, left, 0.0) for take, left in zip(PLAIN, lefts, strict=True)], now=now
        )
        for headers in (EVERY, HEADERS):
            fields = headers.fields_for(each, who)
            assert headers.lines_for(plainly, who) == lines(fields)
            assert headers.fields_for(plainly, who) == fields
        now_us = int(now * 1e6)
        short = refuse(PLAIN, {"t": (lefts[0], now_us, TEAM), "c": (lefts[1] / 100 - 1.0, now_us, CALLER)}, now_us)
        if short is not None:
            for headers in (EVERY, HEADERS):
                fields = headers.fields_for(decision(*short.states, now=short.now), who)
                assert headers.lines_for(short, who) == lines(fields)
                assert headers.fields_for(short, who) == fields


def test_what_takes_longer_than_a_year_to_flow_back_is_sent_as_a_year() -> None:
    slow, slower = Limit("slow", Scope.TEAM, 1e-7, 50.0), Limit("slower", Scope.CALLER, 1e-8, 20.0)
    headers = LimitHeaders(Limits.compile([slow, slower]), key=b"pepper")
    lefts = [30.5, 12.0]
    plainly = admitted(Takes([Take("t", slow), Take("c", slower)]), lefts, NOW)
    each = decision(bucket_state(slow, True, lefts[0], 0.0), bucket_state(slower, True, lefts[1], 0.0))
    sent = read(headers.fields_for(plainly, "backstage"))
    assert sent["RateLimit-Reset"] == str(math.ceil(NOW + 366 * 86400))
    assert re.findall(r";r=(\d+);t=(\d+)", sent["RateLimit"]) == [("30", "31622400"), ("12", "31622400")]
    assert headers.fields_for(plainly, "backstage") == headers.fields_for(each, "backstage")


def lines(fields: Fields) -> bytes:
    return b"".join([name + b": " + value + b"\r\n" for name, value in fields])
