"""The demo's contents are the same every time and look like GitLab's."""

from __future__ import annotations

import re
import zlib

from gateway.demo.seed import TOKENS, add_issue, seed


def test_two_seeds_are_alike() -> None:
    assert seed(3).projects == seed(3).projects


def test_tokens_have_gitlabs_shapes_and_are_plainly_not_real() -> None:
    assert re.fullmatch(r"glpat-demo-[0-9A-Za-z_-]{15}", TOKENS.ada)
    assert re.fullmatch(r"glcbt-[0-9A-Za-z]{1,5}_[0-9A-Za-z_-]{20}", TOKENS.job)
    assert re.fullmatch(r"[0-9a-f]{64}", TOKENS.oauth)
    assert re.fullmatch(r"glpat-[0-9A-Za-z_-]{27,300}\.[0-9a-z]{2}\.[0-9a-z]{2}[0-9a-z]{7}", TOKENS.ada_routable)
    assert len(set(vars(TOKENS).values())) == len(vars(TOKENS))


def test_the_routable_token_carries_its_checksum() -> None:
    head, checksum = TOKENS.ada_routable[:-7], TOKENS.ada_routable[-7:]
    assert int(checksum, 36) == zlib.crc32(head.encode())


def test_as_many_items_as_asked_for() -> None:
    assert len(seed(7).projects) == 4 + 7


def test_issue_numbers_are_not_used_again() -> None:
    state = seed(0)
    project = state.projects[3]
    last = add_issue(state, project, state.users[2], "One more", None)
    assert last.fields["iid"] == 6
    assert last.fields["author"] == {"id": 2, "username": "ada", "name": "Ada Lovelace", "state": "active"}
