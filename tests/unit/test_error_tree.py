"""The exception tree and what an RpcError carries and prints."""

import copy
import inspect
import pickle
import re
import subprocess
import sys
from typing import Any

import pytest
from tidewire import errors
from tidewire.codes import Code, Errno, to_number
from tidewire.errors import Phase, RpcError, Sent, from_number

CLASSES = [
    cls for cls in RpcError.__subclasses__() if cls.__module__ == errors.__name__
]
FACTS: dict[str, Any] = {
    "number": 1234,
    "method": "a.B/c",
    "peer": "10.0.0.1:80",
    "phase": Phase.PEER,
    "sent": Sent.ALL,
    "elapsed": 0.0008,
    "attempts": 2,
}


def test_every_code_but_ok_has_its_class() -> None:
    assert sorted(cls.code for cls in CLASSES) == [c for c in Code if c is not Code.OK]


def test_the_drawing_is_the_tree() -> None:
    drawing = errors.__doc__ or ""
    drawn = dict(re.findall(r"── (\w+)(?: +also (\w+))?", drawing))
    real = {
        cls.__name__: next(
            (base.__name__ for base in cls.__bases__ if base.__module__ == "builtins"),
            "",
        )
        for _, cls in inspect.getmembers(errors, inspect.isclass)
        if issubclass(cls, errors.TidewireError) and cls is not errors.TidewireError
    }
    assert drawn == real
    assert {
        *real,
        "TidewireError",
        "Attempt",
        "Part",
        "Phase",
        "Sent",
        "from_number",
    } == {*errors.__all__}


@pytest.mark.parametrize(
    ("cls", "builtin"),
    [
        (errors.DeadlineExceeded, TimeoutError),
        (errors.Unavailable, ConnectionError),
        (errors.PermissionDenied, PermissionError),
        (errors.NotFound, LookupError),
        (errors.InvalidArgument, ValueError),
        (errors.Unimplemented, NotImplementedError),
        (errors.OptionError, ValueError),
    ],
)
def test_builtins_catch_their_kin(cls: type[Exception], builtin: type) -> None:
    with pytest.raises(builtin, match="gone"):
        raise cls("gone")


@pytest.mark.parametrize("cls", CLASSES)
class TestRpcError:
    def test_a_message_is_enough(self, cls: type[RpcError]) -> None:
        error = cls("no cart 7")
        assert error.message == "no cart 7"
        assert error.number == to_number(cls.code)
        assert (error.method, error.peer, error.elapsed) == (None, None, None)
        assert (error.phase, error.sent, error.attempts) == (Phase.NONE, Sent.NONE, 1)
        assert str(error) == f"no cart 7 [{cls.code.name} {error.number}]"

    def test_facts_are_kept_and_printed(self, cls: type[RpcError]) -> None:
        error = cls("sorry", **FACTS)
        assert {name: getattr(error, name) for name in FACTS} == FACTS
        assert str(error) == (
            f"sorry [{cls.code.name} 1234, method a.B/c, peer 10.0.0.1:80,"
            " phase peer, 2 attempts, 0.8 ms]"
        )

    @pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, pickle.dumps])
    def test_copies_are_complete(self, cls: type[RpcError], clone: Any) -> None:
        error = cls("sorry", **FACTS)
        other = clone(error)
        if isinstance(other, bytes):
            other = pickle.loads(other)
        assert type(other) is cls
        assert vars(other) == vars(error)
        assert str(other) == str(error)

    def test_number_is_an_int32_but_not_success(self, cls: type[RpcError]) -> None:
        for number in (0, 2**31, -(2**31) - 1):
            with pytest.raises(ValueError, match=str(number)):
                cls("x", number=number)


def test_example_of_the_documentation() -> None:
    error = from_number(
        1002,
        "Fail to find method=a.B/c",
        method="a.B/c",
        peer="10.0.0.1:80",
        phase=Phase.PEER,
        sent=Sent.ALL,
        elapsed=0.0008,
    )
    error.limit = 0.5
    assert type(error) is errors.Unimplemented
    assert str(error) == (
        "Fail to find method=a.B/c [UNIMPLEMENTED 1002, method a.B/c,"
        " peer 10.0.0.1:80, phase peer, 0.8 ms of 500 ms];"
        " is it the right server, and its .proto that of this client?"
    )


def test_failures_on_our_side_say_how_much_was_sent() -> None:
    error = from_number(104, "reset", phase=Phase.READ, sent=Sent.SOME, elapsed=12.34)
    assert str(error) == "reset [UNAVAILABLE 104, phase read, sent some, 12.3 s]"


def test_without_a_message_the_facts_remain() -> None:
    assert str(RpcError()) == "[UNKNOWN 121]"


def test_peers_cannot_write_into_our_logs() -> None:
    error = from_number(2001, "a\r\nERROR forged \x1b[31m \udcff ü", phase=Phase.PEER)
    text = str(error)
    assert text.isprintable()
    assert text.startswith(r"a\r\nERROR forged \x1b[31m \udcff ü [")
    assert error.message.startswith("a\r\n")


@pytest.mark.parametrize("number", [n for n in Errno if n > 1000] + [2, 22, 1, 17])
@pytest.mark.parametrize("phase", [Phase.NONE, Phase.PEER, Phase.HANDLER])
def test_class_follows_from_number(number: int, phase: Phase) -> None:
    error = from_number(number, "x", phase=phase)
    assert error.number == number
    assert type(error).code is error.code
    assert type(error) in CLASSES


@pytest.mark.parametrize("phase", [Phase.CONNECT, Phase.WRITE, Phase.READ])
def test_errno_of_our_own_socket_is_no_verdict_of_the_peer(phase: Phase) -> None:
    assert type(from_number(2, "", phase=phase)) is errors.Unavailable
    assert type(from_number(13, "", phase=phase)) is errors.Unavailable
    assert type(from_number(22, "", phase=phase)) is errors.Internal
    assert type(from_number(125, "", phase=phase)) is errors.Cancelled
    assert type(from_number(1008, "", phase=phase)) is errors.DeadlineExceeded


def test_application_numbers_arrive_as_unknown() -> None:
    error = from_number(7777, "out of stock", phase=Phase.PEER)
    assert type(error) is errors.Unknown
    assert error.number == 7777


def test_rpcerror_itself_takes_its_code_from_the_number() -> None:
    assert RpcError("x", number=1002).code is Code.UNIMPLEMENTED
    assert pickle.loads(pickle.dumps(RpcError("x", number=1002))).code is (
        Code.UNIMPLEMENTED
    )


def test_success_is_no_error() -> None:
    with pytest.raises(ValueError, match="success"):
        from_number(0, "")


def test_fork_error_names_the_fork() -> None:
    error = errors.ForkError.of("the server", parent=12, child=15)
    assert error.parent == 12
    assert "the server was made in process 12; process 15 is a fork" in str(error)
    assert pickle.loads(pickle.dumps(error)).parent == 12


def test_leaves_import_nothing_heavy() -> None:
    script = (
        "import sys; import tidewire.codes, tidewire.errors, importlib.util as u\n"
        "import tidewire.options, tidewire.codec\n"
        "bad = {'asyncio', 'concurrent.futures', 'prometheus_client'}\n"
        "bad |= {'google.protobuf', 'httptools', 'tidewire.aio', 'tidewire.metrics'}\n"
        "sys.exit(', '.join(bad & sys.modules.keys()) or None)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
