"""``python -m gateway`` and ``gitlab-gateway``: what signals do before the rest is loaded, then ``cli.main``."""

import os
import signal
import sys
from types import FrameType


def main() -> int:
    """Runs the command that was asked for; the exit code."""
    serves = sys.argv[1:2] == ["serve"]
    first = os.getpid() == 1
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        # A trace of modules that load tells nobody anything.
        signal.signal(signal.SIGINT, _end if first else signal.SIG_DFL)
    if first:
        signal.signal(signal.SIGTERM, _end)
    if serves:
        # It would end the process, and a service manager would take that for its end, not for a failure. The system keeps
        # it until whoever serves can hear it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    from .cli import main as run

    if before is signal.default_int_handler and not serves:
        # Who serves hears it by the event loop; before that there is nothing to put in order, and an exception might be
        # swallowed where it comes.
        signal.signal(signal.SIGINT, before)
    return run()


def _end(number: int, _: FrameType | None) -> None:
    """As the signal itself would: it ends no first process of a container, but where that says so."""
    os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
