"""What is known of a server, for all channels to it."""

import gc

from harness import counter
from tidewire._standing import Standing, standing_of
from tidewire.codes import Errno
from tidewire.errors import Phase, RpcError, from_number

MS = 1000
REFUSED = from_number(int(Errno.ECONNREFUSED), "", phase=Phase.CONNECT)
LOGOFF = from_number(int(Errno.ELOGOFF), "", phase=Phase.PEER)
INTERNAL = from_number(int(Errno.EINTERNAL), "", phase=Phase.PEER)
MISSING = from_number(int(Errno.ENOENT), "", phase=Phase.PEER)
BUSY = from_number(int(Errno.ELIMIT), "", phase=Phase.PEER)
LATE = from_number(int(Errno.ERPCTIMEDOUT), "", phase=Phase.READ)


def end(standing: Standing, error: RpcError | None, now_us: int) -> int:
    """For how long it gets no calls then."""
    standing.ended(error, True, now_us - MS, now_us)
    return max(standing.down_until_us - now_us, 0)


def states() -> list[int]:
    return [
        counter("tidewire_client_servers", state=state)
        for state in ("up", "down", "isolated")
    ]


def test_channels_to_one_server_share_it() -> None:
    one = standing_of("a")
    assert standing_of("a") is one
    assert standing_of("b") is not one
    end(one, REFUSED, 0)
    del one
    gc.collect()
    assert standing_of("a").down_until_us == 0  # nobody had it any more


def test_who_cannot_be_reached_is_passed_by_ever_longer() -> None:
    for error in (REFUSED, LOGOFF):
        standing, now = Standing(), 0
        for longest in (100, 200, 400, 800, 1600, 3000, 3000):
            pause = end(standing, error, now)
            assert longest * MS / 2 <= pause <= longest * MS
            # A call that began before finds the same, and changes nothing.
            assert end(standing, error, now + MS) == pause - MS
            now += pause
        assert end(standing, None, now) == 0
        assert end(standing, error, now) <= 100 * MS


def test_answers_that_handlers_mean_say_nothing() -> None:
    standing = Standing()
    for _ in range(1000):
        assert end(standing, BUSY, 0) == 0
        assert end(standing, MISSING, 0) == 0


def test_a_breaker_only_where_it_is_wanted() -> None:
    quiet, watched = Standing(), Standing()
    before = counter("tidewire_client_isolations")
    for _ in range(200):
        quiet.ended(INTERNAL, False, 0, MS)
        watched.ended(LATE, True, 0, MS)
    assert quiet.down_until_us == 0
    assert watched.down_until_us == MS + 100 * MS
    assert counter("tidewire_client_isolations") > before


def test_its_state_is_counted() -> None:
    gc.collect()
    before = states()

    def since() -> list[int]:
        return [now - then for now, then in zip(states(), before, strict=True)]

    standing = Standing()
    assert since() == [0, 0, 0]
    standing.count()
    standing.count()
    assert since() == [1, 0, 0]
    end(standing, REFUSED, 0)
    assert since() == [0, 1, 0]
    end(standing, None, 10**9)
    assert since() == [1, 0, 0]
    for _ in range(151):
        end(standing, INTERNAL, 2 * 10**9)
    assert since() == [0, 0, 1]
    del standing
    gc.collect()
    assert since() == [0, 0, 0]
