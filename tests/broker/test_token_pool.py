"""One token, and a pool of them."""

from __future__ import annotations

from math import inf

import pytest

from gateway.broker.carriers import Carrier
from gateway.broker.token_pool import HeldToken, StaticCredential, TokenPool
from gateway.core.secret import Secret

KEY = b"p" * 32


def held(name: str = "sa", token: str = "glpat-one", view: Secret | None = None) -> HeldToken:
    return HeldToken(StaticCredential(name, Secret(token), view=view), KEY)


def test_replacing_a_token_replaces_all_that_is_given_out_at_once() -> None:
    one = held()
    before = one.by_carrier
    one.replace(StaticCredential("sa", Secret("glpat-two")))
    assert before[Carrier.PRIVATE_TOKEN].fields == ((b"PRIVATE-TOKEN", b"glpat-one"),)
    assert one.by_carrier[Carrier.PRIVATE_TOKEN].fields == ((b"PRIVATE-TOKEN", b"glpat-two"),)
    assert one.by_carrier[Carrier.BEARER].partition != before[Carrier.BEARER].partition


@pytest.mark.parametrize("token", ["", "a b", "a\r\nb", "glpat-ü", "x" * 8193])
def test_what_can_be_no_token_is_refused_and_changes_nothing(token: str) -> None:
    one = held()
    before = one.by_carrier
    with pytest.raises(ValueError, match="the token of credential `sa` is malformed"):
        one.replace(StaticCredential("sa", Secret(token)))
    assert one.by_carrier is before


def test_those_who_see_the_same_share_a_partition_and_nobody_else_does() -> None:
    def partition(one: HeldToken) -> bytes:
        return one.by_carrier[Carrier.BEARER].partition

    shared = [held(f"pool/{place}", f"glpat-{place}", Secret("pool\none")) for place in (1, 2)]
    assert partition(shared[0]) == partition(shared[1])
    alone = [held("pool/1", "glpat-1"), held("pool/2", "glpat-2"), held("x/1", "glpat-1", Secret("pool\nother"))]
    assert len({partition(shared[0]), *map(partition, alone)}) == 4


def test_nothing_shows_the_tokens() -> None:
    shown = repr(StaticCredential("sa", Secret("hidden"), view=Secret("hidden")))
    assert "hidden" not in shown


# Pools


def pool(*names: str) -> tuple[TokenPool, dict[str, HeldToken]]:
    members = {name: held(name, f"glpat-{name}") for name in names}
    return TokenPool(list(members.values())), members


def picked(one: TokenPool, times: int) -> list[str]:
    return [one.pick().credential.id for _ in range(times)]


def test_those_of_which_nothing_is_known_take_turns() -> None:
    one, _ = pool("a", "b", "c")
    assert picked(one, 6) == ["b", "c", "a", "b", "c", "a"]


def test_the_one_with_the_most_left_goes_up() -> None:
    one, _ = pool("a", "b", "c")
    left = {"a": 10.0, "b": 500.0, "c": 499.0}
    one.remaining = left.__getitem__
    assert picked(one, 3) == ["b", "b", "b"]
    left["b"] = 0.0
    assert picked(one, 2) == ["c", "c"]
    left["a"] = inf
    assert picked(one, 1) == ["a"]


def test_one_that_gitlab_slows_down_is_the_last() -> None:
    one, _ = pool("a", "b")
    one.remaining = {"a": -1.0, "b": 0.0}.__getitem__
    assert picked(one, 2) == ["b", "b"]
    one.remaining = lambda _: -1.0
    assert sorted(picked(one, 2)) == ["a", "b"]


def test_whoever_was_offered_one_is_given_that_one() -> None:
    """Of two, the forward lane would be offered one that it does not know, and the road the other, for ever."""
    one, _ = pool("a", "b")
    assert [(one.offer().credential.id, *picked(one, 1)) for _ in range(4)] == [("b", "b"), ("a", "a")] * 2
    one.offer()
    assert picked(one, 3) == ["b", "a", "b"], "once"


@pytest.mark.parametrize("why", ["refused", "less left"])
def test_an_offer_does_not_outlive_what_it_was_made_for(why: str) -> None:
    one, members = pool("a", "b")
    assert one.offer().credential.id == "b"
    if why == "refused":
        members["b"].refused_until = 1.0
    else:
        one.remaining = {"a": 100.0, "b": -1.0}.__getitem__
    assert picked(one, 2) == ["a", "a"]


def test_a_refused_one_is_left_out_while_there_is_another() -> None:
    one, members = pool("a", "b")
    members["a"].refused_until = 1.0
    assert picked(one, 4) == ["b"] * 4
    members["b"].refused_until = 1.0
    assert set(picked(one, 4)) == {"a", "b"}
