"""Writes results: to benchmarks/results/, and into the parts of docs/performance.md that runs write."""

from __future__ import annotations

from pathlib import Path

import msgspec

ROOT = Path(__file__).parent.parent


def save_result(name: str, result: object) -> None:
    """Write a result to benchmarks/results/NAME.json, without the path of this checkout."""
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    octets = msgspec.json.encode(result).replace(f"{ROOT}/".encode(), b"")
    path.write_bytes(msgspec.json.format(octets, indent=2) + b"\n")


def replace_section(mark: str, text: str) -> None:
    """Put ``text`` between ``<!-- MARK -->`` and ``<!-- /MARK -->`` of the page, in place of what is there.

    Raises:
        RuntimeError: The page has no such marks.
    """
    page = ROOT / "docs" / "performance.md"
    before, begin, rest = page.read_text().partition(f"<!-- {mark} -->\n")
    _, end, after = rest.partition(f"<!-- /{mark} -->")
    if not begin or not end:
        raise RuntimeError(f"docs/performance.md has lost its marks: {mark}")
    page.write_text(f"{before}{begin}{text}\n{end}{after}")
