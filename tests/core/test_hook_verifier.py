from __future__ import annotations

import base64
import hashlib
import hmac

import pytest

from gateway.core.hook_verifier import TOLERANCE_S, Deliveries, HookVerifier
from gateway.core.messages import Fields
from gateway.core.secret import Secret

NOW = 1_800_000_000.0
KEY = bytes(range(32))
SIGNING = "whsec_" + base64.b64encode(KEY).decode()
BODY = b'{"object_kind":"push"}'


def test_a_token_must_be_the_very_one() -> None:
    proof = HookVerifier(Secret("s3cret-token-of-gitlab"))
    assert not proof.needs_body
    assert proof.is_authentic(((b"X-Gitlab-Token", b"s3cret-token-of-gitlab"),), b"", NOW)
    for given in (b"", b"s3cret-token-of-gitla", b"s3cret-token-of-gitlab ", b"S3cret-token-of-gitlab"):
        assert not proof.is_authentic(((b"X-Gitlab-Token", given),), b"", NOW)
    assert not proof.is_authentic((), b"", NOW)


def signed(body: bytes = BODY, number: bytes = b"id-1", stamp: bytes = b"1800000000", key: bytes = KEY) -> Fields:
    digest = hmac.new(key, number + b"." + stamp + b"." + body, hashlib.sha256).digest()
    return (
        (b"Webhook-Id", number),
        (b"webhook-timestamp", stamp),
        (b"webhook-signature", b"v1,other v1," + base64.b64encode(digest)),
    )


def test_a_signature_is_over_body_id_and_time() -> None:
    proof = HookVerifier(Secret(SIGNING))
    assert proof.needs_body
    assert proof.is_authentic(signed(), BODY, NOW)
    assert not proof.is_authentic(signed(), BODY + b" ", NOW)
    assert not proof.is_authentic(signed(key=KEY[::-1]), BODY, NOW)
    assert not proof.is_authentic((*signed()[1:], (b"webhook-id", b"id-2")), BODY, NOW)
    assert not proof.is_authentic(((b"X-Gitlab-Token", SIGNING.encode()),), BODY, NOW), "the key itself proves nothing"


@pytest.mark.parametrize("stamp", [b"", b"-1", b"now", b"1" * 13, b"1" * 5000, b"1799999699", b"1800000301"])
def test_a_signature_of_another_time_is_a_replay(stamp: bytes) -> None:
    assert not HookVerifier(Secret(SIGNING)).is_authentic(signed(stamp=stamp), BODY, NOW)
    assert HookVerifier(Secret(SIGNING)).is_authentic(signed(stamp=b"1799999700"), BODY, NOW)
    assert TOLERANCE_S == 300


def test_a_signature_needs_an_id() -> None:
    assert not HookVerifier(Secret(SIGNING)).is_authentic(signed(number=b""), BODY, NOW)


def test_id_and_time_alone_are_no_signature() -> None:
    assert not HookVerifier(Secret(SIGNING)).is_authentic(signed()[:2], BODY, NOW)


@pytest.mark.parametrize("secret", ["", "a", "x" * 15])
def test_what_can_be_guessed_is_refused(secret: str) -> None:
    with pytest.raises(ValueError, match="can be guessed"):
        HookVerifier(Secret(secret))
    HookVerifier(Secret("x" * 16))


@pytest.mark.parametrize("secret", ["whsec_%%%", "whsec_AAAA", "whsec_"])
def test_what_is_no_signing_token(secret: str) -> None:
    with pytest.raises(ValueError, match="signing token"):
        HookVerifier(Secret(secret))


def test_deliveries_are_remembered_with_a_bound() -> None:
    seen = Deliveries(most=2)
    fields = ((b"X-Gitlab-Event-UUID", b"u"),)
    one, other = Deliveries.name(fields, b"1"), Deliveries.name(fields, b"2")
    assert one != other
    assert one not in seen
    for name in (one, other, b"third"):
        seen.add(name)
    assert one not in seen
    assert other in seen
