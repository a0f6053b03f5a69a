"""Both halves of a GitLab under one name: repositories by ``git http-backend``, and the demo GitLab's API beside them.

What is pushed shows in the API: new commits on ``main`` and tags, as GitLab tells of them.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

from gateway.demo.gitlab import DemoGitLab
from gateway.demo.state import Branch, Commit, Project
from tests.fakes.git_gitlab import GitGitLab, Head

_API = ("/api/", "/oauth/")
_FRAMING = frozenset({"connection", "content-length", "transfer-encoding", "expect"})


class WholeGitLab(GitGitLab):
    """Repositories under ``root``; everything below ``/api`` is ``demo``'s to answer."""

    def __init__(self, root: Path, demo: DemoGitLab, external_url: str, tokens: set[str]) -> None:
        super().__init__(root, external_url, tokens)
        self.demo = demo

    def seed(self, project: Project, files: dict[str, str]) -> Path:
        """A bare repository for one of the demo's projects, with one commit; where it lies."""
        bare = self.root / f"{project.full_path}.git"
        _git("init", "--quiet", "--bare", "--initial-branch=main", str(bare))
        work = self.root / "seed" / project.path
        _git("clone", "--quiet", str(bare), str(work))
        for name, text in files.items():
            (work / name).write_text(text)
        _git("-C", str(work), "add", ".")
        _git("-C", str(work), "commit", "--quiet", "--message", "feat: begin")
        _git("-C", str(work), "push", "--quiet", "origin", "HEAD:main")
        return bare

    async def _answer(self, head: Head, body: AsyncIterator[bytes], writer: asyncio.StreamWriter) -> None:
        if not head.path.startswith(_API):
            await super()._answer(head, body, writer)
            return
        for project in self.demo.state.projects.values():
            await asyncio.to_thread(self._tell, project)
        octets = b"".join([chunk async for chunk in body])
        fields = [f"{name}: {value}" for name, value in head.fields if name.lower() not in _FRAMING]
        lines = [f"{head.method} {head.target} HTTP/1.1", *fields, "Connection: close", f"Content-Length: {len(octets)}"]
        reader, upward = await asyncio.open_connection("127.0.0.1", int(self.demo.url.rpartition(":")[2]))
        try:
            upward.write("\r\n".join([*lines, "", ""]).encode("latin-1") + octets)
            while chunk := await reader.read(64 * 1024):
                writer.write(chunk)
                await writer.drain()
        finally:
            upward.close()
        writer.close()  # as the answer said

    def _tell(self, project: Project) -> None:
        """What git knows of a project and the API does not yet."""
        bare = self.root / f"{project.full_path}.git"
        if not bare.is_dir():
            return
        main = project.branches["main"]
        known = {commit.id for commit in main.commits}
        for line in reversed(_git("-C", str(bare), "log", "--format=%H%x09%an%x09%cI%x09%s", "main").splitlines()):
            number, author, at, title = line.split("\t", 3)
            if number not in known:
                main.commits.insert(0, Commit(number, title, author, at, tuple(one.id for one in main.commits[:1])))
        for name in _git("-C", str(bare), "tag", "--list").split():
            project.tags.setdefault(name, Branch(dict(main.files), list(main.commits)))


def _git(*arguments: str) -> str:
    who = {f"GIT_{role}_{part}": f"a{tail}" for role in ("AUTHOR", "COMMITTER") for part, tail in _WHO}
    done = subprocess.run(
        ["git", *arguments],
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1", **who},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return done.stdout


_WHO = (("NAME", "da"), ("EMAIL", "da@example.com"))
