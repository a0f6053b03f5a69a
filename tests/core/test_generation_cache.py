"""A bounded memory: what is asked for stays, what is not goes."""

from __future__ import annotations

from gateway.core.generation_cache import GenerationCache


def test_what_was_put_is_found() -> None:
    lately: GenerationCache[str, int] = GenerationCache(4)
    assert lately.get("a") is None
    lately.put("a", 1)
    lately.put("a", 2)
    assert (lately.get("a"), len(lately)) == (2, 1)


def test_what_is_asked_for_outlives_any_number_of_others() -> None:
    lately: GenerationCache[int, int] = GenerationCache(10)
    lately.put(0, 0)
    for number in range(1, 1000):
        lately.put(number, number)
        assert lately.get(0) == 0
        assert len(lately) <= 10
    assert lately.get(1) is None


def test_what_nobody_asks_for_is_forgotten_with_the_next_generation() -> None:
    lately: GenerationCache[int, int] = GenerationCache(4)
    for number in range(4):
        lately.put(number, number)
    assert [lately.get(number) for number in (2, 3)] == [2, 3]
    lately.put(4, 4)
    lately.put(5, 5)
    assert lately.get(0) is None


def test_a_generation_may_end_before_it_is_full() -> None:
    lately: GenerationCache[str, int] = GenerationCache(1000)
    lately.put("asked for", 1)
    lately.put("not", 2)
    lately.age()
    assert lately.get("asked for") == 1
    lately.age()
    assert (lately.get("asked for"), lately.get("not")) == (1, None)


def test_what_is_remembered_is_not_shown() -> None:
    lately: GenerationCache[bytes, str] = GenerationCache(4)
    lately.put(b"a secret", "another")
    assert "secret" not in repr([lately, lately.get, lately.put, vars(lately)["_young"]])
