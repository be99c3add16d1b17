"""SIGTERM as an interruption: what was done is kept, and what was started is stopped."""

import signal


def terminating_interrupts() -> None:
    """From now on SIGTERM does what Ctrl-C does, also where SIGINT is ignored, as in a script's background.

    There SIGINT is held back instead of ignored: asyncio ends its tasks in order at a SIGINT that Python handles, and
    would leave an ignored one alone.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt(*_: object) -> None:
        is_waiting = signal.SIGINT in signal.sigpending()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        if not is_waiting:  # one that was held back has just arrived, and a second would be "at once" to asyncio
            signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGTERM, interrupt)
