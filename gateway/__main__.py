"""``python -m gateway`` and ``gitlab-gateway``: set up signals before the rest is loaded, then run ``cli.main``."""

import os
import signal
import sys
from types import FrameType


def main() -> int:
    """Run the command that the arguments name. Returns the exit code."""
    serves = sys.argv[1:2] == ["serve"]
    first = os.getpid() == 1
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        # A traceback from the middle of an import would help nobody.
        signal.signal(signal.SIGINT, _end if first else signal.SIG_DFL)
    if first:
        signal.signal(signal.SIGTERM, _end)
    if serves:
        # Unhandled, SIGHUP would end the process, and a service manager would take that for a normal end, not a failure.
        # Blocked, it stays pending until the server can handle it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    from .cli import main as run

    if before is signal.default_int_handler and not serves:
        # A server is told of SIGINT by its event loop; until then there is nothing to clean up, and an exception might be
        # swallowed wherever it is raised.
        signal.signal(signal.SIGINT, before)
    return run()


def _end(number: int, _: FrameType | None) -> None:
    """End the process as the signal would: a container's first process is sent only those signals that it handles."""
    os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
