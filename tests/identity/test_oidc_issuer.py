from __future__ import annotations

import asyncio
import hmac
import json
from typing import Any

import pytest
from joserfc.jwk import RSAKey
from joserfc.jws import JWSRegistry

from gateway.core.workload_token import peek
from gateway.identity.oidc_issuer import FRESH_S, REFETCH_S, RETRY_S, STALE_S, Issuer
from gateway.ports import NotAnswering
from tests.fakes.issuer import FakeIssuer, segment

KEYS = "/oauth/discovery/keys"
DISCOVERY = "/.well-known/openid-configuration"


class World:
    def __init__(self, **more: Any) -> None:
        self.now = 1000.0
        self.fake = FakeIssuer()
        self.issuer = Issuer(self.fake.url, self.fake, monotonic=lambda: self.now, **more)

    async def judge(self, token: str) -> bool:
        peeked = peek(token)
        assert peeked is not None
        return await self.issuer.has_signed(token, peeked.algorithm, peeked.key_id)


async def turns() -> None:
    """What goes on beside comes to its end."""
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
def world() -> World:
    return World()


async def test_a_signature_is_judged_by_the_issuers_keys(world: World) -> None:
    token = world.fake.sign({"a": 1})
    assert await world.judge(token)
    assert world.fake.asked == [DISCOVERY, KEYS]
    head, _, signature = token.split(".")
    assert not await world.judge(f"{head}.{segment({'a': 2})}.{signature}")
    assert not await world.judge(f"{head}.{segment({'a': 1})}.{signature[:-4]}AAAA")
    assert world.fake.asked == [DISCOVERY, KEYS]


@pytest.mark.parametrize("algorithm", ["RS384", "PS256", "ES256", "ES384", "Ed25519"])
async def test_every_public_algorithm_is_understood(world: World, algorithm: str) -> None:
    if algorithm[0] == "E":
        world.fake.add("other", algorithm)
    assert await world.judge(world.fake.sign({}, alg=algorithm))


async def test_eddsa_is_understood_by_its_old_name(world: World) -> None:
    world.fake.add("other", "Ed25519")
    signed = world.fake.sign({}, alg="Ed25519")
    # The old name stands inside what is signed.
    key = world.fake.keys["other"]
    signing = f"{segment({'alg': 'EdDSA', 'kid': 'other'})}.{signed.split('.')[1]}"
    signature = key.private_key.sign(signing.encode())
    assert await world.judge(f"{signing}.{segment(signature)}")


async def test_no_signature_is_none(world: World) -> None:
    body = segment({})
    for algorithm in ("none", "None", "NONE", "nOnE"):
        assert not await world.judge(f"{segment({'alg': algorithm, 'kid': 'one'})}.{body}.c2ln")
    assert world.fake.asked == []


async def test_the_public_key_is_no_shared_secret(world: World) -> None:
    """HS256 keyed with what everybody may read."""
    public: Any = world.fake.keys["one"]
    signing = f"{segment({'alg': 'HS256', 'kid': 'one'})}.{segment({})}"
    for form in (public.as_pem(private=False), json.dumps(public.as_dict(private=False)).encode()):
        forged = hmac.digest(form, signing.encode(), "sha256")
        assert not await world.judge(f"{signing}.{segment(forged)}")


@pytest.mark.parametrize("header", ["jwk", "jku", "x5u", "x5c"])
async def test_a_key_that_comes_with_the_token_is_never_used(world: World, header: str) -> None:
    mine = RSAKey.generate_key(2048, {"kid": "one"})
    thief = FakeIssuer()
    thief.keys = {"one": mine}
    value: Any = {
        "jwk": mine.as_dict(private=False),
        "jku": "https://evil.example.com/keys",
        "x5u": "https://evil.example.com/chain",
        "x5c": ["MIIB"],
    }[header]
    assert not await world.judge(thief.sign({}, **{header: value}))
    assert all(path in {DISCOVERY, KEYS} for path in world.fake.asked)
    # And one that is signed well isn't refused for carrying what nobody reads.
    assert await world.judge(world.fake.sign({}, **{header: value}))


async def test_an_algorithm_the_operator_did_not_allow_is_refused() -> None:
    world = World(algorithms=("ES256", "HS256"))
    assert not await world.judge(world.fake.sign({}))
    assert not await world.judge(f"{segment({'alg': 'HS256'})}.{segment({})}.c2ln")
    world.fake.add("other", "ES256")
    assert await world.judge(world.fake.sign({}, alg="ES256"))


async def test_a_key_for_another_algorithm_signs_nothing(world: World) -> None:
    document = json.loads(world.fake.document(KEYS))
    document["keys"][0]["alg"] = "RS512"
    world.fake.documents[KEYS] = json.dumps(document).encode()
    assert not await world.judge(world.fake.sign({}))


async def test_without_a_key_id_the_only_key_must_have_signed(world: World) -> None:
    token = world.fake.sign({}, kid="one")
    head = segment({"alg": "RS256"})
    signing = f"{head}.{token.split('.')[1]}"
    signature = JWSRegistry.algorithms["RS256"].sign(signing.encode(), world.fake.keys["one"])
    bare = f"{signing}.{segment(signature)}"
    assert await world.judge(bare)
    world.fake.rotate(keep=True)
    world.now += FRESH_S
    assert not await world.judge(bare)


# Rotation


async def test_a_new_key_is_asked_for_and_an_old_one_forgotten(world: World) -> None:
    old = world.fake.sign({})
    assert await world.judge(old)
    world.fake.rotate()
    world.now += REFETCH_S
    assert await world.judge(world.fake.sign({}))
    assert not await world.judge(old)


async def test_tokens_of_a_new_key_that_come_at_once_wait_for_the_same_answer(world: World) -> None:
    """A pipeline's jobs start together: only the first of them finds that the keys must be asked for."""
    assert await world.judge(world.fake.sign({}))
    world.fake.rotate()
    world.now += REFETCH_S
    world.fake.gate.clear()
    judged = [asyncio.ensure_future(world.judge(world.fake.sign({"jti": number}))) for number in range(3)]
    for _ in range(5):
        await asyncio.sleep(0)
    judged.append(asyncio.ensure_future(world.judge(world.fake.sign({"jti": "later"}))))
    stranger = asyncio.ensure_future(world.judge(f"{segment({'alg': 'RS256', 'kid': 'unknown'})}.{segment({})}.c2ln"))
    await asyncio.sleep(0)
    world.fake.gate.set()
    assert await asyncio.gather(*judged) == [True] * 4
    assert not await stranger
    assert world.fake.asked.count(KEYS) == 2


async def test_unknown_key_ids_cost_the_issuer_one_request_in_a_while(world: World) -> None:
    token = world.fake.sign({}).split(".", 1)[1]
    for number in range(50):
        assert not await world.judge(f"{segment({'alg': 'RS256', 'kid': f'k{number}'})}.{token}")
    assert world.fake.asked.count(KEYS) == 1
    world.now += REFETCH_S
    for number in range(50):
        assert not await world.judge(f"{segment({'alg': 'RS256', 'kid': f'k{number}'})}.{token}")
    assert world.fake.asked.count(KEYS) == 2


async def test_many_at_once_ask_once(world: World) -> None:
    token = world.fake.sign({})
    assert all(await asyncio.gather(*(world.judge(token) for _ in range(20))))
    assert world.fake.asked == [DISCOVERY, KEYS]
    await world.issuer.close()


# An issuer that fails


async def test_a_silent_issuer_leaves_its_last_keys(world: World) -> None:
    token = world.fake.sign({})
    assert await world.judge(token)
    world.fake.failure = NotAnswering("silent")
    world.now += FRESH_S
    assert await world.judge(token)
    asked = len(world.fake.asked)
    assert await world.judge(token)
    assert len(world.fake.asked) == asked
    world.fake.rotate()
    for later in (0.0, RETRY_S):
        world.now += later
        with pytest.raises(NotAnswering):
            await world.judge(world.fake.sign({}))
    world.now += STALE_S
    with pytest.raises(NotAnswering):
        await world.judge(token)


async def test_nobody_waits_for_an_issuer_that_is_silent_where_its_last_keys_tell(world: World) -> None:
    """Each try may take seconds, one behind the other: hundreds of jobs would stand in line for it."""
    token = world.fake.sign({})
    assert await world.judge(token)
    world.fake.failure = NotAnswering("silent")
    world.now += FRESH_S
    assert await world.judge(token)
    asked = len(world.fake.asked)
    for _ in range(3):
        world.fake.gate.clear()
        world.now += RETRY_S
        async with asyncio.timeout(30):
            for _ in range(3):
                assert await world.judge(token)
        world.fake.gate.set()
        await turns()
    assert len(world.fake.asked) == asked + 3
    world.fake.failure = None
    world.fake.rotate()
    world.now += RETRY_S
    assert await world.judge(token), "for the last time"
    await turns()
    assert not await world.judge(token)


async def test_the_operator_hears_once_that_and_why_keys_cannot_be_fetched(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody else may notice for a day."""
    assert await world.judge(world.fake.sign({}))
    world.fake.failure = NotAnswering("the issuer answered 404")
    world.now += FRESH_S
    for _ in range(3):
        assert await world.judge(world.fake.sign({}))
        await turns()
        world.now += RETRY_S
    world.fake.failure = None
    for _ in range(3):
        assert await world.judge(world.fake.sign({}))
        await turns()
    first, second = caplog.records
    assert (first.levelname, second.levelname) == ("ERROR", "WARNING")
    assert "https://issuer.example.com can't be fetched: the issuer answered 404" in first.getMessage()
    assert "again" in second.getMessage()


async def test_an_issuer_that_never_answered_cannot_tell(world: World) -> None:
    world.fake.failure = NotAnswering("silent")
    for _ in range(10):
        with pytest.raises(NotAnswering):
            await world.judge(world.fake.sign({}))
    assert len(world.fake.asked) == 1
    world.fake.failure = None
    world.now += RETRY_S
    assert await world.judge(world.fake.sign({}))


@pytest.mark.parametrize(
    ("path", "document"),
    [
        (DISCOVERY, b"<html>"),
        (DISCOVERY, b"[]"),
        (
            DISCOVERY,
            b'{"issuer": "https://other.example.com", "jwks_uri": "https://issuer.example.com/oauth/discovery/keys"}',
        ),
        (DISCOVERY, b'{"issuer": "https://issuer.example.com"}'),
        (
            DISCOVERY,
            b'{"issuer": "https://issuer.example.com", "jwks_uri": "http://issuer.example.com/oauth/discovery/keys"}',
        ),
        (KEYS, b'{"keys": {}}'),
        (KEYS, b"\xff"),
    ],
)
async def test_an_answer_of_no_use_is_no_answer(world: World, path: str, document: bytes) -> None:
    world.fake.documents[path] = document
    with pytest.raises(NotAnswering):
        await world.judge(world.fake.sign({}))


async def test_keys_of_no_use_are_passed_over(world: World) -> None:
    small = RSAKey.generate_key(2048, {"kid": "small"}).as_dict(private=False) | {"n": "AQAB" * 40}
    world.fake.documents[KEYS] = json.dumps(
        {
            "keys": [
                "text",
                {"kty": "oct", "kid": "one", "k": "c2VjcmV0"},
                {"kty": ["RSA"]},
                {"kty": "RSA", "kid": "one"},
                {"kty": "RSA", "kid": "one", "n": 7, "e": "AQAB"},
                {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
                small,
                {**world.fake.keys["one"].as_dict(private=False), "use": "enc"},
                {**world.fake.keys["one"].as_dict(private=False), "kid": 7, "alg": 7},
                world.fake.keys["one"].as_dict(private=False),
            ]
        }
    ).encode()
    assert await world.judge(world.fake.sign({}))


async def test_a_configured_address_needs_no_discovery() -> None:
    world = World(jwks_uri="https://issuer.example.com/oauth/discovery/keys")
    assert await world.judge(world.fake.sign({}))
    assert world.fake.asked == [KEYS]
