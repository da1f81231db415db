"""What an error says beside its facts."""

import pytest
from tidewire.codes import Errno
from tidewire.errors import Phase, from_number


@pytest.mark.parametrize(
    ("number", "phase", "hint"),
    [
        (Errno.ECONNREFUSED, Phase.CONNECT, "is the server running"),
        (Errno.EHOSTDOWN, Phase.RESOLVE, "is the name right"),
        (Errno.ERPCTIMEDOUT, Phase.READ, "give a longer timeout"),
        (Errno.ERPCTIMEDOUT, Phase.CONNECT, "went into connecting"),
        (Errno.ENOMETHOD, Phase.PEER, ".proto"),
        (Errno.ELIMIT, Phase.PEER, "more servers"),
        # What a handler means needs none, and what it raises here neither.
        (Errno.ENOENT, Phase.PEER, ""),
        (Errno.ENOMETHOD, Phase.HANDLER, ""),
        (Errno.ECANCELED, Phase.NONE, ""),
    ],
)
def test_hints(number: Errno, phase: Phase, hint: str) -> None:
    error = from_number(int(number), "what happened", phase=phase)
    assert hint in error.hint
    assert bool(error.hint) is bool(hint)
    assert str(error).endswith(f"; {error.hint}" if hint else "]")
    assert "\n" not in str(error)


def test_the_limit_stands_beside_the_time() -> None:
    error = from_number(int(Errno.ERPCTIMEDOUT), "late", phase=Phase.READ)
    error.elapsed, error.limit = 0.5004, 0.5
    assert "500 ms of 500 ms]" in str(error)
    error.limit = None
    assert "500 ms]" in str(error)
