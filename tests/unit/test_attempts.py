"""When a call is tried again, and when on two servers at once: what is allowed."""

import pytest
from tidewire.codes import Errno
from tidewire.errors import OptionError, Phase, RpcError, Sent, from_number
from tidewire.retry import BackupPolicy, RetryPolicy
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
    assert RetryPolicy().retries(failed, UNKNOWN) is unknown
    assert RetryPolicy().retries(failed, SAFE) is safe


@pytest.mark.parametrize("tries", range(12))
def test_the_same_server_is_given_time(tries: int) -> None:
    """None at first; then twice as much each time, up to a limit, less a chance."""
    policy = RetryPolicy(backoff=0.01, backoff_most=0.5)
    failed = error(Errno.ECONNREFUSED, Phase.CONNECT, Sent.NONE)
    pauses = [policy.pause(failed, tries) for _ in range(100)]
    longest = min(0.01 * 2 ** (tries - 1), 0.5) if tries else 0.0
    assert all(longest / 2 <= pause <= longest for pause in pauses)
    assert len(set(pauses)) > 50 or not tries


def test_backups_are_of_calls_that_may_be_sent_twice() -> None:
    policy = BackupPolicy(after=0.02)
    assert policy.delay(SAFE) == 0.02
    assert policy.delay(UNKNOWN) is None


@pytest.mark.parametrize(
    ("make", "error_type", "text"),
    [
        (lambda: RetryPolicy(budget_share=-1), OptionError, "from 0 to 1000"),
        (lambda: RetryPolicy(budget_floor=float("nan")), OptionError, "retries/s"),
        (lambda: RetryPolicy(backoff="1"), TypeError, "RetryPolicy.backoff is '1'"),
        (lambda: RetryPolicy(backoff_most=True), TypeError, "seconds from 0 to 3600"),
        (lambda: BackupPolicy(after=-0.1), OptionError, "BackupPolicy.after is -0.1"),
        (lambda: BackupPolicy(after=1, max_ratio=0), OptionError, "over 0 to 1"),
        (lambda: BackupPolicy(after=1, max_ratio=1.1), OptionError, "over 0 and up"),
    ],
)
def test_bad_policies(make, error_type, text) -> None:
    with pytest.raises(error_type) as caught:
        make()
    assert text in str(caught.value)
