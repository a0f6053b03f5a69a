"""``python -m gateway`` and ``gitlab-gateway``: what signals do before the rest is loaded, then ``cli.main``."""

import signal
import sys


def main() -> int:
    """Runs the command that was asked for; the exit code."""
    serves = sys.argv[1:2] == ["serve"]
    if serves:
        # It would end the process, and a service manager would take that for its end, not for a failure. The system keeps
        # it until whoever serves can hear it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a trace of modules that load tells nobody anything
    from .cli import main as run

    if before is signal.default_int_handler and not serves:
        # Who serves hears it by the event loop; before that there is nothing to put in order, and an exception might be
        # swallowed where it comes.
        signal.signal(signal.SIGINT, before)
    return run()


if __name__ == "__main__":
    sys.exit(main())
