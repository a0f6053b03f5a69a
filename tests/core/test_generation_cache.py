"""A bounded memory: what is asked for stays, what is not goes."""

from __future__ import annotations

from gateway.core.generation_cache import GenerationCache


def test_what_was_put_is_found() -> None:
    cache: GenerationCache[str, int] = GenerationCache(4)
    assert cache.get("a") is None
    cache.put("a", 1)
    cache.put("a", 2)
    assert (cache.get("a"), len(cache)) == (2, 1)


def test_what_is_asked_for_outlives_any_number_of_others() -> None:
    cache: GenerationCache[int, int] = GenerationCache(10)
    cache.put(0, 0)
    for number in range(1, 1000):
        cache.put(number, number)
        assert cache.get(0) == 0
        assert len(cache) <= 10
    assert cache.get(1) is None


def test_what_nobody_asks_for_is_forgotten_with_the_next_generation() -> None:
    cache: GenerationCache[int, int] = GenerationCache(4)
    for number in range(4):
        cache.put(number, number)
    assert [cache.get(number) for number in (2, 3)] == [2, 3]
    cache.put(4, 4)
    cache.put(5, 5)
    assert cache.get(0) is None


def test_a_generation_may_end_before_it_is_full() -> None:
    cache: GenerationCache[str, int] = GenerationCache(1000)
    cache.put("asked for", 1)
    cache.put("not", 2)
    cache.age()
    assert cache.get("asked for") == 1
    cache.age()
    assert (cache.get("asked for"), cache.get("not")) == (1, None)


def test_what_is_remembered_is_not_shown() -> None:
    cache: GenerationCache[bytes, str] = GenerationCache(4)
    cache.put(b"a secret", "another")
    assert "secret" not in repr([cache, cache.get, cache.put, vars(cache)["_current"]])
