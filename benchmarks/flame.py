"""``make flame``: where the CPU time of a hit and of a miss goes, as flame graphs in docs/.

    python -m benchmarks.flame [--seconds 6] [--write]

py-spy watches the gateway under the load of the bench. The graphs are drawn here, so that they contain only names of
functions and files of the gateway and its libraries, and no path of a machine. A frame is as wide as its share of the
samples.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from xml.sax.saxutils import escape

import msgspec

from .load import Shape, put_under_load
from .page import ROOT
from .targets import ISSUES, LOAD_CPU, Bench

WIDTH, ROW, LEAST = 1200, 17, 1.5
"""In pixels: the width of the drawing, the height of a frame, and the width of the narrowest frame drawn."""
RATE = 500
_FRAME = re.compile(r"(?P<name>.+?) \((?P<file>.+?)(?::\d+)?\)")
_PACKAGES = re.compile(r".*/(?:site-packages|python3\.\d+)/")


class Node(msgspec.Struct):
    """A function, as called by its parent."""

    name: str
    samples: int = 0
    below: dict[str, Node] = {}

    def add(self, stack: list[str], samples: int) -> None:
        self.samples += samples
        if stack:
            below = self.below.setdefault(stack[0], Node(stack[0]))
            below.add(stack[1:], samples)

    def depth(self) -> int:
        return 1 + max((node.depth() for node in self.below.values()), default=0)


def read(raw: str) -> Node:
    """Read py-spy's raw stacks, without the frames outside the event loop, line numbers and directories."""
    root = Node("all")
    for line in raw.splitlines():
        stack, _, samples = line.rpartition(" ")
        frames = [_short(frame) for frame in stack.split(";")]
        loop = max((at for at, frame in enumerate(frames) if frame.startswith(("Runner.run", "run (asyncio"))), default=-1)
        root.add(frames[loop + 1 :] or ["event loop (uvloop)"], int(samples))
    return root


def _short(frame: str) -> str:
    found = _FRAME.fullmatch(frame)
    if found is None:
        return frame
    file = _PACKAGES.sub("", found["file"])
    return f"{found['name']} ({file.removeprefix(f'{ROOT}/')})" if not file.startswith("/") else found["name"]


def draw_flame_graph(root: Node, title: str) -> str:
    """The graph as SVG, callers above what they call."""
    height = (root.depth() + 2) * ROW + 12
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" font-family="monospace">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="6" y="18" font-size="14" font-weight="bold" fill="#1f2328">{escape(title)}</text>',
    ]
    _draw(root, root.samples, 0.0, 2 * ROW - 6.0, out)
    return "\n".join([*out, "</svg>", ""])


def _draw(node: Node, whole: int, x: float, y: float, out: list[str]) -> None:
    width = node.samples / whole * WIDTH
    if width < LEAST:
        return
    share = f"{node.samples / whole:.1%}"
    # One colour per file, so that a part looks alike wherever it is; the gateway's own files are warm, others grey.
    file = node.name.rpartition("(")[2]
    tone = hashlib.sha256(file.encode()).digest()[0]
    colour = (
        f"hsl({10 + tone % 45},80%,{62 + tone % 5 * 3}%)"
        if file.startswith("gateway")
        else f"hsl(210,12%,{74 + tone % 12}%)"
    )
    most_letters = int((width - 4) / 6.1)
    text = node.name if len(node.name) <= most_letters else node.name[: max(0, most_letters - 1)] + "…"
    out.append(
        f'<g><title>{escape(node.name)}: {share}</title><rect x="{x:.1f}" y="{y:.1f}" width="{max(0.5, width - 0.5):.1f}" '
        f'height="{ROW - 1}" fill="{colour}"/>'
        + (
            f'<text x="{x + 2:.1f}" y="{y + 12:.1f}" font-size="10" fill="#1f2328">{escape(text)}</text>'
            if most_letters > 3
            else ""
        )
        + "</g>"
    )
    for below in sorted(node.below.values(), key=lambda one: one.name):
        _draw(below, whole, x, y + ROW, out)
        x += below.samples / whole * WIDTH


def record_stacks(bench: Bench, spy: str, shape: Shape, port: int, pid: int, seconds: int) -> Node:
    """The gateway's stacks while it is under load."""
    put_under_load(shape, port, connections=64, seconds=1, cpu=LOAD_CPU, directory=bench.directory)
    raw = bench.directory / "stacks"
    argv = [
        spy,
        "record",
        "-p",
        str(pid),
        "-d",
        str(seconds),
        "-r",
        str(RATE),
        "-F",
        "-f",
        "raw",
        "-o",
        str(raw),
        "--nonblocking",
    ]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as watcher:
        put_under_load(shape, port, connections=64, seconds=seconds + 1, cpu=LOAD_CPU, directory=bench.directory)
    if watcher.returncode:
        raise RuntimeError("py-spy could not watch: it needs the right to trace (root, or ptrace_scope 0)")
    return read(raw.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=int, default=6)
    parser.add_argument("--write", action="store_true", help="as docs/flame-hit.svg and docs/flame-miss.svg")
    given = parser.parse_args()
    own = ROOT / ".bench/peers/bin/py-spy"
    spy = str(own) if own.exists() else shutil.which("py-spy")
    if spy is None:
        raise SystemExit("flame: py-spy is missing: .ci/bench installs it")
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        Path(directory).chmod(0o711)
        bench = Bench(Path(directory))
        try:
            bench.start_base_programs()
            store = f"redis://127.0.0.1:{bench.redis}/0" if bench.redis else "memory:"
            program, port, key = bench.gateway("flame", STORE=store, CACHE="memory")
            for kind in ("hit", "miss"):
                shape = Shape(ISSUES, {"PRIVATE-TOKEN": key}, distinct=kind == "miss")
                root = record_stacks(bench, spy, shape, port, program.pid, given.seconds)
                where = f"buckets in {store.partition(':')[0]}, cache in memory"
                title = f"A {kind}, {where}, {root.samples:,} samples, Python {bench.python}"
                svg = draw_flame_graph(root, title)
                if given.write:
                    (ROOT / "docs" / f"flame-{kind}.svg").write_text(svg)
                print(f"flame: {title}: {len(svg) // 1024} KiB")
        finally:
            bench.close()


if __name__ == "__main__":
    main()
