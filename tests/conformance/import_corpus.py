"""Turn a folder of malformed requests and responses into the files beside this script.

    python tests/conformance/import_corpus.py FOLDER

``FOLDER`` holds ``requests.jsonl`` and ``responses.jsonl``: one JSON object a line, octets as ``raw_base64``. What comes
out is easier to review: octets as text (each character is one octet, U+0000 to U+00FF), long repetitions as
``[text, times]``, and a placeholder wherever a live gateway key belongs. Remarks are left out.
"""

from __future__ import annotations

import base64
import json
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
KEY, OTHER_KEY = "<gateway-key>", "<other-gateway-key>"
_KEYS = {"gwtok-corpus-valid-token-0001": KEY, "gwtok-corpus-valid-token-0002": OTHER_KEY}
_REPEATED = re.compile(r"(.{1,40}?)\1{30,}", re.DOTALL)

Piece = str | list[Any]


def pieces(text: str) -> list[Piece]:
    """``text`` with its long repetitions folded."""
    found: list[Piece] = []
    end = 0
    for run in _REPEATED.finditer(text):
        if run.start() > end:
            found.append(text[end : run.start()])
        found.append([run[1], len(run[0]) // len(run[1])])
        end = run.end()
    if end < len(text):
        found.append(text[end:])
    return found


def octets(folded: list[Piece]) -> str:
    """The inverse of ``pieces``."""
    return "".join(piece if isinstance(piece, str) else piece[0] * piece[1] for piece in folded)


def _text(case: dict[str, Any]) -> list[Piece]:
    text = base64.b64decode(case["raw_base64"]).decode("latin-1")
    for token, placeholder in _KEYS.items():
        text = text.replace(token, placeholder)
    folded = pieces(text)
    assert octets(folded) == text, case["id"]
    return folded


def _request(case: dict[str, Any]) -> dict[str, Any]:
    kept = {
        "id": case["id"],
        "category": case["category"],
        "expect": case["expect"],
        "statuses": case.get("status"),
        "closes": case.get("must_close"),
        "upstream": case["upstream"],
        "upstream_has": [pieces(one) for one in case.get("require_upstream", ())],
        "upstream_lacks": [pieces(one) for one in case.get("forbid_upstream", ())],
        "answers": case.get("responses"),
        "half_closes": case.get("eof"),
        "split": case.get("split"),
        "octets": _text(case),
    }
    return {name: value for name, value in kept.items() if value}


def _response(case: dict[str, Any]) -> dict[str, Any]:
    kept = {
        "id": case["id"],
        "category": case["category"],
        "expect": case["expect"],
        "method": case["method"],
        "closes": case["upstream_closes"],
        "reusable": case["may_reuse_upstream_connection"],
        "client_has": [pieces(one) for one in case.get("require_client", ())],
        "client_lacks": [pieces(one) for one in case.get("forbid_client", ())],
        "octets": _text(case),
    }
    return {name: value for name, value in kept.items() if value}


def convert(folder: Path) -> None:
    """Write both files."""
    for name, shape in (("requests", _request), ("responses", _response)):
        cases = [shape(json.loads(line)) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        (HERE / f"malformed_{name}.jsonl").write_text("".join(json.dumps(case) + "\n" for case in cases))


if __name__ == "__main__":
    convert(Path(sys.argv[1]))
