"""When a call is tried again: what is allowed, and how often."""

import pytest
from tidewire._attempts import Budget, may_retry
from tidewire.codes import Errno
from tidewire.errors import Phase, RpcError, Sent, from_number
from tidewire.service import Idempotency, MethodInfo

UNKNOWN = MethodInfo(service="a.B", name="C", request=bytes, response=bytes)
SAFE = MethodInfo(
    service="a.B",
    name="C",
    request=bytes,
    response=bytes,
    idempotency=Idempotency.NO_SIDE_EFFECTS,
)


def error(number: Errno, phase: Phase, sent: Sent) -> RpcError:
    return from_number(int(number), "", phase=phase, sent=sent)


@pytest.mark.parametrize(
    ("number", "phase", "sent", "unknown", "safe"),
    [
        (Errno.ECONNREFUSED, Phase.CONNECT, Sent.NONE, True, True),
        (Errno.ETIMEDOUT, Phase.CONNECT, Sent.NONE, True, True),
        (Errno.EHOSTUNREACH, Phase.CONNECT, Sent.NONE, True, True),
        (Errno.EFAILEDSOCKET, Phase.CONNECT, Sent.NONE, True, True),
        (Errno.EPIPE, Phase.WRITE, Sent.NONE, True, True),
        (Errno.EPIPE, Phase.WRITE, Sent.SOME, False, True),
        (Errno.EEOF, Phase.READ, Sent.ALL, False, True),
        (Errno.ECONNRESET, Phase.READ, Sent.ALL, False, True),
        (Errno.EOVERCROWDED, Phase.WRITE, Sent.NONE, True, True),
        # What the server says.
        (Errno.ELOGOFF, Phase.PEER, Sent.ALL, True, True),
        (Errno.ELIMIT, Phase.PEER, Sent.ALL, True, True),
        (Errno.EOVERCROWDED, Phase.PEER, Sent.ALL, False, False),
        (Errno.EEOF, Phase.PEER, Sent.ALL, False, False),
        (Errno.EINTERNAL, Phase.PEER, Sent.ALL, False, False),
        (Errno.ENOMETHOD, Phase.PEER, Sent.ALL, False, False),
        # What is the caller's.
        (Errno.ERPCTIMEDOUT, Phase.CONNECT, Sent.NONE, False, False),
        (Errno.ECANCELED, Phase.NONE, Sent.NONE, False, False),
        (Errno.EREQUEST, Phase.NONE, Sent.NONE, False, False),
        (Errno.ERPCAUTH, Phase.PEER, Sent.ALL, False, False),
        (Errno.EINVAL, Phase.READ, Sent.ALL, False, False),
    ],
)
def test_what_may_be_tried_again(
    number: Errno, phase: Phase, sent: Sent, unknown: bool, safe: bool
) -> None:
    failed = error(number, phase, sent)
    assert may_retry(failed, UNKNOWN) is unknown
    assert may_retry(failed, SAFE) is safe


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_budget_is_a_tenth_of_the_calls_and_a_floor() -> None:
    clock = Clock()
    budget = Budget(clock)
    for _ in range(1000):
        budget.call()
    taken = sum(budget.retry() for _ in range(1000))
    assert taken == 200  # 10 in each of 10 seconds, and a tenth of 1000
    assert not budget.retry()
    # They come back as the second passes out of the window, the calls' share too.
    clock.now += Budget.WINDOW - 1
    assert not budget.retry()
    clock.now += 1
    assert sum(budget.retry() for _ in range(1000)) == 100


def test_a_long_pause_leaves_nothing() -> None:
    clock = Clock()
    budget = Budget(clock)
    for _ in range(5000):
        budget.call()
    clock.now += 1e6
    assert sum(budget.retry() for _ in range(1000)) == 100
