"""SIGTERM as an interruption: what was done is kept, and what was started is stopped."""

import signal


def terminating_interrupts() -> None:
    """From now on SIGTERM does what Ctrl-C does, also where SIGINT is ignored, as in a script's background."""

    def interrupt(*_: object) -> None:
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGTERM, interrupt)
