"""The breaker: when it leaves a service alone, and how it finds out that it is back."""

import time

from search_rollout.search.circuit_breaker import CircuitBreaker


def long_ago() -> float:
    return time.monotonic() - 10


def opened(open_s: float = 60.0) -> CircuitBreaker:
    breaker = CircuitBreaker(failures=3, failing_s=1.0, open_s=open_s)
    for _ in range(3):
        breaker.failed(long_ago())
    return breaker


def test_failures_in_a_row_that_last_open_it():
    breaker = opened()
    assert breaker.is_open and not breaker.allows()


def test_a_success_between_failures_resets_the_count():
    breaker = CircuitBreaker(failures=3, failing_s=1.0)
    for _ in range(5):
        breaker.failed(long_ago())
        breaker.failed(long_ago())
        breaker.succeeded()
    assert not breaker.is_open


def test_many_failures_of_one_moment_do_not_open_it():
    breaker = CircuitBreaker(failures=3, failing_s=1.0)
    for _ in range(100):
        breaker.failed(time.monotonic())
    assert breaker.allows() and not breaker.is_open


def test_one_call_at_a_time_probes_an_open_one():
    breaker = opened(open_s=0.05)
    assert not breaker.allows()
    time.sleep(0.06)
    assert breaker.allows() and not breaker.allows()
    time.sleep(0.06)
    assert breaker.allows()  # the first probe was cancelled and told nobody


def test_a_probe_that_succeeds_closes_it_and_one_that_fails_does_not():
    breaker = opened(open_s=0.05)
    time.sleep(0.06)
    assert breaker.allows()
    breaker.failed(time.monotonic())
    assert breaker.is_open and not breaker.allows()
    breaker.succeeded()
    assert breaker.allows() and breaker.allows() and not breaker.is_open
