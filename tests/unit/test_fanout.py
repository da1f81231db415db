"""What a call on a ParallelChannel decides: no sockets, no waiting."""

import pickle
import random
from dataclasses import replace
from typing import Any

import pytest
import tidewire as tw
from combos import IDEMPOTENT, REQUEST, joined
from generated import echo_pb2
from tidewire._call import Response
from tidewire.codes import Errno
from tidewire.coding import PLAIN
from tidewire.combo.fanout import FanOut, Plan
from tidewire.errors import Phase, Sent, from_number


def plan(n: int = 3, **how: Any) -> Plan:
    how = {"fail_limit": None, "success_limit": None, "map": None, **how}
    how.setdefault("merge", joined)
    return Plan(channels=[f"c{i}" for i in range(n)], **how)


def fan(n: int = 3, **how: Any) -> FanOut:
    return plan(n, **how).fan(IDEMPOTENT, REQUEST, 1.0)


def answer(text: str) -> Response[Any]:
    return Response(
        message=echo_pb2.EchoResponse(message=text),
        attachment=memoryview(b""),
        metadata={},
        peer="p",
        coding=PLAIN,
        elapsed=0.0,
    )


def error(
    number: int = Errno.ENXIO, phase: Phase = Phase.PEER, sent: Sent = Sent.ALL
) -> tw.RpcError:
    return from_number(int(number), "no", phase=phase, sent=sent)


def failed(it: FanOut) -> tw.RpcError:
    with pytest.raises(tw.RpcError) as caught:
        it.reply()
    return caught.value


@pytest.mark.parametrize(
    ("n", "fail", "success", "limit"),
    [
        (3, None, None, 3),
        (3, 1, None, 1),
        (3, 7, None, 3),
        (3, None, 1, 3),
        (3, None, 2, 2),
        (3, None, 3, 1),
        (3, None, 9, 1),
        (1, None, None, 1),
    ],
)
def test_the_limit_of_failures(n, fail, success, limit):
    assert fan(n, fail_limit=fail, success_limit=success).fail_limit == limit


@pytest.mark.parametrize("seed", range(200))
def test_it_is_over_as_soon_as_it_is_decided_whatever_the_order(seed):
    dice = random.Random(seed)
    n = dice.randint(1, 8)
    limits = {dice.choice(["fail_limit", "success_limit"]): dice.randint(1, n)}
    it = fan(n, **limits)
    good = bad = 0
    need = limits.get("success_limit", n)
    for i in dice.sample(range(n), n):
        assert not it.over
        if dice.random() < 0.5:
            it.ended(i, answer(str(i)), None)
            good += 1
        else:
            it.ended(i, None, error())
            bad += 1
        decided = bad >= it.fail_limit or good >= need or good + bad == n
        assert it.over is decided, (seed, limits, good, bad)
        if decided:
            break
    if bad >= it.fail_limit:
        assert failed(it).number == Errno.ENXIO
    else:
        assert len(it.reply().parts) == n
        assert good >= limits.get("success_limit", 1) or "fail_limit" in limits
    ends = [part.error.number for part in it.parts() if part.error]
    assert ends.count(Errno.ENXIO) == bad
    assert len(ends) == n - good


def test_what_comes_late_changes_nothing():
    it = fan(2, success_limit=1)
    it.ended(0, answer("a"), None)
    it.ended(1, answer("b"), None)
    assert it.reply().message.message == "a|-"
    assert it.parts()[1].error.number == Errno.EPCHANFINISH


def test_skipped_ones_count_in_nothing():
    it = fan(3, map=lambda i, *_: tw.SKIP if i == 1 else REQUEST)
    assert list(it.requests) == [0, 2]
    assert it.fail_limit == 2
    it.ended(0, None, error())
    it.ended(2, None, error())
    assert it.over
    assert "2/2 channels failed, fail_limit=2 [C0][E6]no [C2][E6]no" in str(failed(it))
    assert [part.skipped for part in it.parts()] == [False, True, False]


@pytest.mark.parametrize(
    ("numbers", "number"),
    [
        ([Errno.ENXIO, Errno.ENXIO], Errno.ENXIO),
        ([Errno.ENXIO, Errno.ECANCELED], Errno.ENXIO),
        ([Errno.ECANCELED, Errno.ECANCELED], Errno.ECANCELED),
        ([Errno.ENXIO, Errno.EEXIST], Errno.ETOOMANYFAILS),
        ([Errno.ENXIO, -7], Errno.ETOOMANYFAILS),
    ],
)
def test_the_number_is_the_one_that_all_share(numbers, number):
    it = fan(len(numbers))
    for i, one in enumerate(numbers):
        it.ended(i, None, error(one))
    assert failed(it).number == number


@pytest.mark.parametrize(
    ("ends", "phase", "sent"),
    [
        ([(Phase.CONNECT, Sent.NONE)] * 2, Phase.CONNECT, Sent.NONE),
        (
            [(Phase.CONNECT, Sent.NONE), (Phase.RESOLVE, Sent.NONE)],
            Phase.CONNECT,
            Sent.NONE,
        ),
        ([(Phase.PEER, Sent.ALL)] * 2, Phase.PEER, Sent.ALL),
        ([(Phase.CONNECT, Sent.NONE), (Phase.PEER, Sent.ALL)], Phase.READ, Sent.ALL),
        ([(Phase.CONNECT, Sent.NONE), None], Phase.READ, Sent.ALL),
        ([(Phase.PEER, Sent.ALL), None], Phase.READ, Sent.ALL),
    ],
)
def test_how_far_it_came_says_whether_it_may_be_tried_again(ends, phase, sent):
    # Failures come last, and only the last decides.
    it = fan(2, fail_limit=sum(one is not None for one in ends))
    for i, one in sorted(enumerate(ends), key=lambda end: end[1] is not None):
        if one is None:
            it.ended(i, answer("x"), None)
        else:
            it.ended(i, None, error(Errno.ELIMIT, *one))
    got = failed(it)
    assert (got.phase, got.sent) == (phase, sent)
    # A call that may have run in part is not made again.
    unsafe = tw.MethodInfo(
        service="s",
        name="m",
        request=echo_pb2.EchoRequest,
        response=echo_pb2.EchoResponse,
    )
    may = tw.RetryPolicy().retries(got, unsafe)
    assert may is (sent is Sent.NONE or phase is Phase.PEER)


def test_a_cancelled_part_may_have_run():
    it = fan(2, fail_limit=1)
    it.ended(0, None, error(Errno.ECONNREFUSED, Phase.CONNECT, Sent.NONE))
    got = failed(it)
    assert (got.number, got.phase, got.sent) == (
        Errno.ECONNREFUSED,
        Phase.READ,
        Sent.ALL,
    )


def test_without_merge_a_method_of_bytes_is_refused():
    raw = tw.MethodInfo(service="s", name="m", request=bytes, response=bytes)
    with pytest.raises(TypeError, match=r"s/m gives bytes, which has no MergeFrom"):
        plan(2, merge=None).fan(raw, b"", None)
    assert plan(2, merge=lambda replies: b"").fan(raw, b"", None).requests == {
        0: b"",
        1: b"",
    }


def test_an_error_with_parts_can_be_pickled():
    it = fan(2, fail_limit=1)
    # Generated messages can be where their module can be imported by its name.
    response = replace(answer(""), message="a", attachment=memoryview(b"x"))
    it.ended(0, response, None)
    it.ended(1, None, error())
    got = pickle.loads(pickle.dumps(failed(it)))
    assert got.parts[0].response == response
    assert got.parts[1].error.number == Errno.ENXIO


def test_closed_and_cancelled_end_it():
    for end in (FanOut.closed, FanOut.cancelled):
        it = fan(2)
        it.ended(0, answer("a"), None)
        got = end(it)
        assert it.over
        assert isinstance(got, tw.Cancelled)
        assert got.parts[0].response is not None
        assert got.parts[1].error is not None
