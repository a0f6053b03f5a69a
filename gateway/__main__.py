"""``python -m gateway`` and ``gitlab-gateway``: what signals do before the rest is loaded, then ``cli.main``."""

import signal
import sys


def main() -> int:
    """Runs the command that was asked for; the exit code."""
    if sys.argv[1:2] == ["serve"]:
        # A hangup would end the process, and a service manager would take that for its end, not for a failure; an interrupt
        # may come where something swallows it. The system keeps them until whoever serves can hear them.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGINT, signal.SIGTERM})
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a trace of modules that load tells nobody anything
    from .cli import main as run

    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, before)
    return run()


if __name__ == "__main__":
    sys.exit(main())
