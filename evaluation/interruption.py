"""Handles SIGTERM like Ctrl-C, so that finished work is kept and child processes are stopped."""

import signal
import threading


def terminating_interrupts() -> None:
    """Makes SIGTERM act like Ctrl-C from now on, even if SIGINT is ignored, as for a script's background jobs.

    In that case SIGINT is blocked instead of ignored: asyncio cancels its tasks cleanly only if Python handles SIGINT.
    Does nothing in another thread than the main one, where Python sets no handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt(*_: object) -> None:
        is_waiting = signal.SIGINT in signal.sigpending()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        if not is_waiting:  # a blocked one has just arrived, and asyncio treats a second one as "exit at once"
            signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGTERM, interrupt)
