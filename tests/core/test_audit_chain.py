from __future__ import annotations

import hmac
import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.audit_chain import CLOSED, OPENED, Chain, Flaw, chain_key, mac_of, verify

KEY = chain_key(b"an audit key of some length")


def run(name: str, facts: list[str], after: str = "", *, close: bool = True) -> list[bytes]:
    chain = Chain(KEY, name)
    events: list[dict[str, str]] = [{"event": OPENED, **({"after": after} if after else {})}]
    events += [{"target": fact} for fact in facts]
    lines = [chain.link(json.dumps(event).encode()) for event in events]
    return [*lines, chain.close(json.dumps({"event": CLOSED}).encode())] if close else lines


ONE = run("a" * 16, ["/api/v4/user", "/api/v4/projects/1", '"chain":"x","seq":0}'])
TWO = run("b" * 16, ["/x"], mac_of(ONE[-1]))
WHOLE = ONE + TWO


def flaws(lines: list[bytes], **more: object) -> list[str]:
    return [str(flaw) for flaw in verify(lines, KEY, **more)]  # type: ignore[arg-type]


def test_a_whole_record_has_no_flaw() -> None:
    assert flaws(WHOLE) == []
    assert [json.loads(line)["seq"] for line in WHOLE] == [0, 1, 2, 3, 4, 0, 1, 2]


MISSING = "names an earlier line that is missing"
THREE = run("c" * 16, ["/y"], mac_of(TWO[-1]))


def test_a_whole_run_that_is_missing_is_found() -> None:
    assert flaws(WHOLE + THREE) == []
    assert flaws(TWO) == [f"line 1: {MISSING}"]
    assert flaws(TWO + THREE) == [f"line 1: {MISSING}"]
    assert flaws(THREE) == [f"line 1: {MISSING}"]
    assert flaws(ONE + THREE) == [f"line {len(ONE) + 1}: {MISSING}"]


def test_what_was_before_the_first_line_alone_may_be_gone() -> None:
    """By ``partial``: runs before the file, not one out of its middle, nor one before a gateway that was killed."""
    assert flaws(TWO, partial=True) == []
    assert flaws(TWO + THREE, partial=True) == []
    assert flaws(ONE + THREE, partial=True) == [f"line {len(ONE) + 1}: {MISSING}"]
    assert flaws(ONE[2:] + THREE, partial=True) == [f"line {len(ONE) - 1}: {MISSING}"]
    assert flaws(ONE[:-1] + THREE, partial=True, still_open=True) == [f"line {len(ONE)}: {MISSING}"]


def test_one_that_writes_beside_may_come_first_in_a_new_file() -> None:
    """A worker looks at the file, another's lines have it rotated, and the first one's opening comes after those."""
    assert flaws(ONE[1:] + TWO[:1] + THREE[:1] + TWO[1:] + THREE[1:], partial=True) == []
    late = run("d" * 16, ["/z"], mac_of(ONE[0]))
    assert flaws([*ONE[1:3], *late, *ONE[3:]], partial=True) == []
    assert flaws([*ONE[1:3], *late, *ONE[3:]]) != []
    assert flaws([*ONE[1:], *late], partial=True) == [f"line {len(ONE)}: {MISSING}"]


ALONE = "is the only line left of its chain, and nothing proves it"


def forged(number: int, **more: object) -> bytes:
    """A line of nobody's, with a chain and a MAC that somebody made up."""
    line = json.dumps({"principal": "user:7", "method": "DELETE", "target": "/api/v4/projects/1", **more})
    return b'%b,"chain":"%016x","seq":7,"mac":"%064x"}' % (line[:-1].encode(), number, number)


@pytest.mark.parametrize("event", [{}, {"event": CLOSED}, {"event": CLOSED, "before": "ab" * 32}])
@pytest.mark.parametrize("at", range(len(WHOLE) + 1))
def test_lines_of_chains_that_never_were_are_found_where_older_files_are_gone(event: dict[str, str], at: int) -> None:
    lines = [*WHOLE[:at], forged(0xF1, **event), forged(0xF2, **event), *WHOLE[at:]]
    assert [f"line {at + 1}: {ALONE}", f"line {at + 2}: {ALONE}"] == flaws(lines, partial=True, still_open=True)
    assert flaws([forged(0xF1, **event)], partial=True, still_open=True) == [f"line 1: {ALONE}"]
    again = flaws([*lines, forged(0xF1, **event)], partial=True, still_open=True)
    assert f"line {len(lines) + 1}: has the MAC of an earlier line" in "\n".join(again)


def test_the_last_line_of_a_chain_is_proven_by_what_names_it() -> None:
    killed = run("e" * 16, ["/x"], close=False)
    assert flaws(killed[-1:] + run("f" * 16, ["/y"], mac_of(killed[-1])), partial=True, still_open=True) == []
    assert flaws(killed[-1:], partial=True, still_open=True) == [f"line 1: {ALONE}"]
    assert flaws(killed[-1:], partial=True, still_open=True, heads=[f"{'e' * 16}:1:{mac_of(killed[-1])}"]) == []


def test_closing_lines_are_proven_by_themselves() -> None:
    """Workers that wrote nothing more after a rotation each leave one, and the next run names the last of them alone."""
    beside = run("e" * 16, ["/x"])
    next_run = run("f" * 16, ["/y"], mac_of(ONE[-1]))
    assert flaws([beside[-1], ONE[-1], *next_run], partial=True) == []
    assert flaws([*next_run[:1], beside[-1], *next_run[1:]], partial=True) == []
    changed = beside[-1].replace(b'"seq":2', b'"seq":3')
    assert flaws([changed, ONE[-1], *next_run], partial=True) == [f"line 1: {ALONE}"]
    assert flaws([beside[-1], *next_run, beside[-1]], partial=True) != []


@given(st.binary(max_size=200), st.lists(st.binary(max_size=300), min_size=1, max_size=3))
def test_a_mac_is_an_hmac(key: bytes, facts: list[bytes]) -> None:
    """Of keys of any length, as RFC 2104 has them: shorter than a block, as long, and longer."""
    chain, before = Chain(key, "a" * 16), bytes(32)
    for fact in facts:
        line = chain.link(b"{%b}" % fact)
        body, _, mac = line[:-2].rpartition(b',"mac":"')
        before = hmac.digest(key, before + body, "sha256")
        assert bytes.fromhex(mac.decode()) == before


def test_mixed_chains_are_told_apart() -> None:
    other = run("c" * 16, ["/y", "/z"])
    mixed = [line for pair in zip(ONE, [*other, None], strict=True) for line in pair if line is not None]
    assert flaws(mixed) == []


def test_another_key_makes_another_chain() -> None:
    found = [str(flaw) for flaw in verify(WHOLE, chain_key(b"another"))]
    assert len(found) == len(WHOLE) + 1
    assert found[-1] == "no line is proven: `secrets.audit_key` may not be the one that they were written with"
    changed = [WHOLE[0].replace(b"opened", b"closed"), *WHOLE[1:]]
    assert not [flaw for flaw in flaws(changed) if "key" in flaw]


@pytest.mark.parametrize("at", range(len(WHOLE)))
def test_every_removal_is_found(at: int) -> None:
    assert flaws(WHOLE[:at] + WHOLE[at + 1 :])


@pytest.mark.parametrize("at", range(len(WHOLE)))
def test_every_repetition_is_found(at: int) -> None:
    for to in range(len(WHOLE) + 1):
        assert flaws([*WHOLE[:to], WHOLE[at], *WHOLE[to:]])


def test_lines_that_were_written_again_are_told_as_such() -> None:
    """As by a gateway whose disk could not be synced; what comes behind them is as if they were not there."""
    again = "has the MAC of an earlier line: it was written again after a disk failure, or copied"
    assert flaws([*ONE[:3], *ONE[1:3], *ONE[3:], *TWO]) == [f"line {number}: {again}" for number in (4, 5)]
    changed = ONE[1].replace(b"user", b"root")
    made_up = "has the MAC of an earlier line but other content: it was forged"
    assert flaws([*ONE[:3], changed, *ONE[3:], *TWO]) == [f"line 4: {made_up}"]
    assert flaws([*ONE[1:3], ONE[2], *ONE[3:], *TWO], partial=True) == [f"line 3: {again}"]
    assert flaws([ONE[1], *ONE[1:], *TWO], partial=True) == [f"line 2: {again}"], "what was before it is not known"
    assert flaws([*ONE[:3], *ONE[1:2], *ONE[4:], *TWO])[:2] == [
        f"line 4: {again}",
        "line 5: is number 4 of its chain where 3 belongs",
    ]


@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 10_000), st.integers(1, 255))
@settings(max_examples=300)
def test_every_changed_octet_is_found(at: int, position: int, mask: int) -> None:
    line = bytearray(WHOLE[at])
    line[position % len(line)] ^= mask
    assert flaws([*WHOLE[:at], bytes(line), *WHOLE[at + 1 :]])


@given(st.permutations(range(len(ONE))))
def test_every_other_order_is_found(order: list[int]) -> None:
    assert bool(flaws([ONE[at] for at in order])) is (order != list(range(len(ONE))))


@given(st.lists(st.text(max_size=20), max_size=8), st.data())
@settings(max_examples=50)
def test_any_record_bears_no_single_change(facts: list[str], data: st.DataObject) -> None:
    lines = run("d" * 16, facts)
    assert flaws(lines) == []
    at = data.draw(st.integers(0, len(lines) - 1))
    changes: dict[str, Callable[[], list[bytes]]] = {
        "removed": lambda: lines[:at] + lines[at + 1 :],
        "emptied": lambda: [*lines[:at], b"", *lines[at + 1 :]],
        "added": lambda: [*lines[:at], b'{"target":"/x"}', *lines[at:]],
        "cut": lambda: [*lines[:at], lines[at][:-1], *lines[at + 1 :]],
    }
    assert flaws(changes[data.draw(st.sampled_from(sorted(changes)))]())


def test_what_was_forged_with_a_mac_of_old_is_found() -> None:
    mac = mac_of(ONE[1]).encode()
    forged = b'{"target":"/forged","chain":"%b","seq":1,"mac":"%b"}' % (b"a" * 16, mac)
    assert flaws([ONE[0], forged, *ONE[2:]]) == ["line 2: was changed, or does not follow the line before it"]


def test_a_missing_end_is_found_by_the_head_alone() -> None:
    chain = Chain(KEY, "e" * 16)
    lines = [chain.link(b'{"event":"chain_opened"}'), chain.link(b'{"target":"/x"}')]
    head = chain.head
    assert flaws(lines, still_open=True, heads=[head]) == []
    assert flaws(lines[:-1], still_open=True) == []
    assert flaws(lines[:-1], still_open=True, heads=[head]) == [
        f"the line {'e' * 16}:1 that the operator's log names is missing"
    ]
    assert "is not closed" in flaws(lines)[0]
    assert flaws([]) == ["no line of a chain was found"]
    assert flaws(lines, still_open=True, heads=["nonsense"]) == [
        "the line nonsense that the operator's log names is missing"
    ]


def test_lines_behind_the_end_and_chains_without_a_beginning_are_found() -> None:
    chain = Chain(KEY, "f" * 16)
    lines = [chain.link(b'{"a":1}'), chain.link(b'{"event":"chain_closed"}'), chain.link(b'{"a":2}')]
    assert [flaw.line for flaw in verify(lines, KEY)] == [1, 3, 0]
    assert str(Flaw(3, "is odd")) == "line 3: is odd"


def test_what_carries_no_mac_says_so() -> None:
    assert mac_of(b'{"target":"/x"}') == ""
    assert flaws([b'{"target":"/x"}'], still_open=True)[0] == "line 1: is not a line of a chain"


@pytest.mark.parametrize(
    "line", [b'{"event":7', b'{"event":7}'[:-1], b'{"event":"chain_opened","after":"zz"}', b"{nonsense}"]
)
def test_what_reads_badly_is_judged_without_falling(line: bytes) -> None:
    chain = Chain(KEY, "9" * 16)
    list(verify([chain.link(line), *WHOLE], KEY))


@pytest.mark.parametrize("gone", range(1, len(ONE)))
def test_what_is_left_when_older_files_are_gone(gone: int) -> None:
    left = WHOLE[gone:]
    assert flaws(left)
    assert flaws(left, partial=True) == []
    for at in range(1, len(left) - 1):
        if left[at + 1 :] and not left[at - 1].endswith(ONE[-1]):
            assert flaws(left[:at] + left[at + 1 :], partial=True) or left[at] == TWO[0], at
    name, seq = "a" * 16, str(gone)
    assert flaws(left, partial=True, heads=[f"{name}:{seq}:{mac_of(WHOLE[gone])}"]) == []
