"""Where results go: benchmarks/results/, and the parts of docs/performance.md that runs write."""

from __future__ import annotations

from pathlib import Path

import msgspec

ROOT = Path(__file__).parent.parent


def keep(name: str, result: object) -> None:
    """As benchmarks/results/NAME.json, without the place of this checkout."""
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    octets = msgspec.json.encode(result).replace(f"{ROOT}/".encode(), b"")
    path.write_bytes(msgspec.json.format(octets, indent=2) + b"\n")


def put(mark: str, text: str) -> None:
    """Between ``<!-- MARK -->`` and ``<!-- /MARK -->``, in place of what stands there.

    Raises:
        RuntimeError: The page has no such marks.
    """
    page = ROOT / "docs" / "performance.md"
    before, begin, rest = page.read_text().partition(f"<!-- {mark} -->\n")
    _, end, after = rest.partition(f"<!-- /{mark} -->")
    if not begin or not end:
        raise RuntimeError(f"docs/performance.md has lost its marks: {mark}")
    page.write_text(f"{before}{begin}{text}\n{end}{after}")
