"""Nothing token-shaped survives; nothing else changes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.redaction import MASK, escape_unprintable, is_page, redact

GLPAT = b"glpat-" + b"a1B2" * 5


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        pytest.param(b"/api/v4/projects/a%2Fb?page=2&per_page=3", b"/api/v4/projects/a%2Fb?page=2&per_page=3", id="plain"),
        pytest.param(b"/x?private_token=abc&page=1", b"/x?private_token=[redacted]&page=1", id="parameter"),
        pytest.param(b"/x?a=1;feed_token=abc", b"/x?a=1;feed_token=[redacted]", id="after-semicolon"),
        pytest.param(b"/cb?code=abc&state=def", b"/cb?code=[redacted]&state=[redacted]", id="oauth"),
        pytest.param(b"/x?state=opened&page=1", b"/x?state=opened&page=1", id="a-list's-state"),
        pytest.param(b"/x?state=openedx", b"/x?state=[redacted]", id="like-a-list's-state"),
        pytest.param(b"/x?client_secret=s&q=1", b"/x?client_secret=[redacted]&q=1", id="secret"),
        pytest.param(b"/x/" + GLPAT, b"/x/" + MASK, id="pat-in-path"),
        pytest.param(b"/x?q=acme-" + GLPAT, b"/x?q=acme-" + MASK, id="custom-prefix"),
        pytest.param(b"/x?q=glpat%2D" + b"a1B2" * 5, b"/x?q=" + MASK, id="encoded-dash"),
        pytest.param(b"/x?q=glpat%252D" + b"a1B2" * 5, b"/x?q=" + MASK, id="twice-encoded-dash"),
        pytest.param(b"/x?sudo=%67lpat-" + b"a1B2" * 5, b"/x?sudo=" + MASK, id="encoded-letter"),
        pytest.param(b"/x?sudo=%2567lpat-" + b"a1B2" * 5, b"/x?sudo=" + MASK, id="twice-encoded-letter"),
        pytest.param(b"agent ggw_" + b"Z9" * 20, b"agent " + MASK, id="gateway-key"),
        pytest.param(b"eyJhbGciOiJSUzI1.eyJpc3MiOiJo.c2ln", MASK, id="jwt"),
        pytest.param(b"/x/acme-eyJhbGciOiJSUzI1.eyJpc3MiOiJo.c2ln/y", b"/x/" + MASK + b"/y", id="jwt-behind-a-prefix"),
        pytest.param(b"/x/eyJhbGciOiJSUzI1/y.z", b"/x/eyJhbGciOiJSUzI1/y.z", id="no-jwt"),
        pytest.param(b"/x?token=a;b&q=1", b"/x?token=[redacted]&q=1", id="a-semicolon-in-a-secret"),
        pytest.param(b"/x?a=1&tok%65n=abc", b"/x?a=1&token=[redacted]", id="encoded-name"),
        pytest.param(b"/x?token=a%26b&q=%67", b"/x?token=[redacted]&q=%67", id="an-ampersand-in-a-secret"),
        pytest.param(
            b"/x?key=K&value=s3cr3t&masked=true", b"/x?key=[redacted]&value=[redacted]&masked=true", id="variable"
        ),
        pytest.param(b"/x?ref=main&variables[A]=s", b"/x?ref=main&variables[A]=[redacted]", id="trigger's-variable"),
        pytest.param(
            b"/x?variables%5B%5D%5Bvalue%5D=s", b"/x?variables%5B%5D%5Bvalue%5D=[redacted]", id="encoded-brackets"
        ),
        pytest.param(b"/x?url_variables[][value]=s&a=1", b"/x?url_variables[][value]=[redacted]&a=1", id="hook's-variable"),
        pytest.param(b"/x?custom_headers[0][value]=s", b"/x?custom_headers[0][value]=[redacted]", id="hook's-header"),
        pytest.param(b"/x?app_name=a&instance_id=s", b"/x?app_name=a&instance_id=[redacted]", id="feature-flags"),
        pytest.param(b"/x?webhook=https://h.test/s", b"/x?webhook=[redacted]", id="integration's-webhook"),
        pytest.param(b"/x?recaptcha_private_key=s", b"/x?recaptcha_private_key=[redacted]", id="settings'-key"),
        pytest.param(
            b"/x?external_auth_client_key_pass=s", b"/x?external_auth_client_key_pass=[redacted]", id="key's-pass"
        ),
        pytest.param(b"/x?device_code=s&user_code=t", b"/x?device_code=[redacted]&user_code=[redacted]", id="device"),
        pytest.param(b"/x?code_verifier=s&code_challenge=t", b"/x?code_verifier=[redacted]&code_challenge=t", id="pkce"),
        pytest.param(b"/x?SAMLResponse=s&RelayState=t", b"/x?SAMLResponse=[redacted]&RelayState=t", id="saml"),
        pytest.param(b"/x?otp_attempt=123456", b"/x?otp_attempt=[redacted]", id="one-time-password"),
        pytest.param(b"/-/invites/a1B2c3D4e5F6/accept", b"/-/invites/[redacted]/accept", id="invitation"),
        pytest.param(
            b"/x?import_url=https://u:p@h.test/x.git&n=1",
            b"/x?import_url=https://[redacted]@h.test/x.git&n=1",
            id="userinfo",
        ),
        pytest.param(
            b"/x?url=https%3A%2F%2Fu%3Ap%40%40h.test%2F",
            b"/x?url=https%3A%2F%2F[redacted]%40h.test%2F",
            id="encoded-userinfo",
        ),
        pytest.param(b"git (https://u:p@ss@h.test/x)", b"git (https://[redacted]@h.test/x)", id="userinfo-with-at"),
        pytest.param(b"/x?q=https://h.test/a@b", b"/x?q=https://h.test/a@b", id="no-userinfo"),
        pytest.param(
            b"/api/v4/projects/1/statuses/9?state=success&ref=x",
            b"/api/v4/projects/1/statuses/9?state=success&ref=x",
            id="commit-status",
        ),
        pytest.param(b"/api/v4/todos?state=done", b"/api/v4/todos?state=done", id="to-dos"),
        pytest.param(b"/x?keyset=1&values=2&passes=3", b"/x?keyset=1&values=2&passes=3", id="like-secrets'-names"),
        pytest.param(b"/x?%70assword=a%26b%20c%23d&y=1", b"/x?password=[redacted]&y=1", id="all-of-a-hidden-name's-value"),
        pytest.param(b"/x?y=1;%74oken=a%26b&z=%26", b"/x?y=1;token=[redacted]&z=%26", id="hidden-name-behind-a-semicolon"),
        pytest.param(b"/x?q=glpat-abcdefgh1%41bcdefgh2", b"/x?q=[redacted]", id="token-that-hides-in-part"),
        pytest.param(b"/x?q=eyJabcdefgh.abcdefgh%2Eabcdefgh", b"/x?q=[redacted]", id="jwt-that-hides-in-part"),
        pytest.param(b"glpat-abcdefgheyJabcdefgh.abcdefgh=abcdefgh", b"[redacted]", id="jwt-within-a-token"),
        pytest.param(
            b"/a%2Eb?url=https://u:p%252Fq%40h&%67lpat-abcdefgh", b"/a.b?url=https://[redacted]@h&[redacted]", id="both"
        ),
        pytest.param(b"/x?st%61te=a%26b", b"/x?state=[redacted]", id="hidden-state"),
        pytest.param(b"/x?a%26%70asswd%3D=b%26c", b"/x?a_passwd_=[redacted]", id="hidden-name-with-an-ampersand"),
        pytest.param(
            b"/x?google_iap_service_account_json=%7B", b"/x?google_iap_service_account_json=[redacted]", id="json"
        ),
        pytest.param(b"/p/a%2Db?code_search=1", b"/p/a%2Db?code_search=1", id="encoded-dash-without-token"),
    ],
)
def test_secrets_are_blanked(text: bytes, clean: bytes) -> None:
    assert redact(text) == clean


PIECES = [
    b"token",
    b"&token",
    b"eyJ",
    b"eyJaaaaaaaa",
    b"eyJaaaaaaaa.",
    b"?",
    b"?a",
    b"key",
    b"_code",
    b"%5d",
    b"://",
    b"://a",
]


@pytest.mark.parametrize("end", [b"", b"=", b"@", b".aaaaaaaa"])
@pytest.mark.parametrize(
    "piece", [*PIECES, b"&%41a=", b"%3a%2f%2f", b"%3a%2f%2fa", b"@", b"%40", b"%67", b"%25", b"state=", b"/-/invites/"]
)
def test_long_texts_take_no_longer_than_their_length(piece: bytes, end: bytes) -> None:
    """Their square would be minutes."""
    redact(b"/x?a=1&" + piece * ((1 << 18) // len(piece)) + end)


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_a_token_never_survives(before: bytes, after: bytes) -> None:
    assert GLPAT not in redact(before + GLPAT + after)


@given(st.from_regex(rb"/[a-z0-9/]{0,40}", fullmatch=True))
def test_clean_text_is_returned_as_it_is(text: bytes) -> None:
    assert redact(text) is text


_PARAMETERS = st.sampled_from(
    [
        b"page=1",
        b"per_page=20",
        b"sort=desc",
        b"order_by=created_at",
        b"state=opened",
        b"state=x",
        b"token=abc",
        b"sort=ggw_abcdefgh",
    ]
)
_PATHS = st.lists(
    st.sampled_from(
        [b"/", b"a%2Fb", b"%67lpat-", b"glpat-", b"aB3" * 5, b";token=", b"&key=", b"=", b"ggw_", b"%", b"state"]
    ),
    max_size=6,
).map(b"".join)


@given(_PATHS, st.lists(_PARAMETERS, min_size=1, max_size=3).map(b"&".join))
def test_a_page_is_its_path_and_nothing_to_hide(path: bytes, query: bytes) -> None:
    if is_page(path, query):
        assert redact(path + b"?" + query) == redact(path) + b"?" + query


@pytest.mark.parametrize(
    ("path", "query", "page"),
    [
        (b"/a%2Fb", b"page=2&per_page=20&state=opened", True),
        (b"/a", b"page=2&", False),
        (b"/a", b"", False),
        (b"/a", b"page=glpat-1", False),
        (b"/a", b"search=x", False),
        (b"/a;token=x", b"page=2", False),
        (b"/a&token=x", b"page=2", False),
    ],
)
def test_what_a_page_is(path: bytes, query: bytes, page: bool) -> None:
    assert is_page(path, query) is page


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("café /a%2Fb", "café /a%2Fb"),
        ("\x1b[2J", r"\x1b[2J"),
        ("a\nb\x9bm", r"a\nb\x9bm"),
        ("\u202eb.exe", r"\u202eb.exe"),
        ("\udcff", r"\udcff"),
    ],
    ids=["printable", "a terminal's escape", "a line's end", "right to left", "no character"],
)
def test_what_moves_a_terminal_is_escaped(text: str, escaped: str) -> None:
    assert escape_unprintable(text) == escaped
