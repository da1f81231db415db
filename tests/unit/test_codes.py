"""Numbers, the mapping, and csrc/api.h as the source of both."""

import ast
import errno
import re
from pathlib import Path

import pytest
from tidewire.codes import Code, Errno, to_code, to_number

ROOT = Path(__file__).resolve().parents[2]
API = re.sub(r"/\*.*?\*/", "", (ROOT / "csrc/api.h").read_text(), flags=re.S)
CONSTANTS = {
    name: int(value) for name, value in re.findall(r"\b(TW_\w+) = (-?\d+)", API)
}
PROTOTYPES = {
    name: 0 if parameters == "void" else parameters.count(",") + 1
    for name, parameters in re.findall(r"^\w[\w *]*?(tw_\w+)\(([^)]*)\);", API, re.M)
}

GRPC_NAMES = """
OK CANCELLED UNKNOWN INVALID_ARGUMENT DEADLINE_EXCEEDED NOT_FOUND ALREADY_EXISTS
PERMISSION_DENIED RESOURCE_EXHAUSTED FAILED_PRECONDITION ABORTED OUT_OF_RANGE
UNIMPLEMENTED INTERNAL UNAVAILABLE DATA_LOSS UNAUTHENTICATED
"""


def test_codes_are_grpcs_seventeen() -> None:
    assert [code.name for code in Code] == GRPC_NAMES.split()
    assert list(Code) == list(range(17))


def test_brpc_numbers_are_those_of_api_h() -> None:
    numbers = {n[3:]: v for n, v in CONSTANTS.items() if n.startswith("TW_E")}
    assert len(numbers) >= 13
    assert {name: Errno[name] for name in numbers} == numbers


@pytest.mark.parametrize("number", [n for n in Errno if n < 1000])
def test_errno_values_are_the_systems(number: Errno) -> None:
    assert getattr(errno, number.name) == number


@pytest.mark.parametrize("number", Errno)
def test_every_named_number_has_a_place(number: Errno) -> None:
    unknown = {Errno.EREMOTEIO, Errno.EHTTP}
    assert (to_code(number) is Code.UNKNOWN) == (number in unknown)


@pytest.mark.parametrize(
    ("code", "names"),
    [
        (Code.UNIMPLEMENTED, "ENOSERVICE ENOMETHOD"),
        (Code.INVALID_ARGUMENT, "EREQUEST EINVAL"),
        (Code.UNAUTHENTICATED, "ERPCAUTH"),
        (Code.PERMISSION_DENIED, "EPERM"),
        (Code.NOT_FOUND, "ENOENT"),
        (Code.ALREADY_EXISTS, "EEXIST"),
        (Code.DEADLINE_EXCEEDED, "ERPCTIMEDOUT"),
        (Code.CANCELLED, "ECANCELED"),
        (Code.RESOURCE_EXHAUSTED, "EOVERCROWDED ELIMIT"),
        (Code.INTERNAL, "EINTERNAL ERESPONSE"),
        (
            Code.UNAVAILABLE,
            "EFAILEDSOCKET EEOF ELOGOFF ECONNREFUSED ECONNRESET EPIPE ETIMEDOUT"
            " EHOSTDOWN ENETUNREACH EHOSTUNREACH",
        ),
    ],
)
def test_numbers_of_a_code(code: Code, names: str) -> None:
    assert {to_code(Errno[name]) for name in names.split()} == {code}


@pytest.mark.parametrize("code", Code)
def test_a_code_comes_back_as_itself(code: Code) -> None:
    assert to_code(to_number(code)) is code


def test_what_a_handler_answers_is_not_retried_by_brpc() -> None:
    """spec: the default retry list.  Another server may serve a call that was
    refused for want of resources or because the server is going away; all
    other answers are about the call itself."""
    retried = (
        "ENOENT EPIPE ENODATA ECONNRESET ETIMEDOUT ECONNREFUSED EHOSTDOWN EFAILEDSOCKET"
        " EOVERCROWDED EEOF EH2RUNOUTSTREAMS ELOGOFF ELIMIT"
    )
    numbers = {Errno[name] for name in retried.split()}
    assert {code for code in Code if to_number(code) in numbers} == {
        Code.RESOURCE_EXHAUSTED,
        Code.UNAVAILABLE,
    }


@pytest.mark.parametrize("number", [-1, -20, 7777, 5001, 2**31 - 1])
def test_numbers_of_applications_are_unknown(number: int) -> None:
    assert to_code(number) is Code.UNKNOWN


def test_the_documentation_has_every_number() -> None:
    text = (ROOT / "docs/errors.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (E\w+) \| (\w+) \|", text, re.M)
    assert [(int(number), name) for number, name, _ in rows] == [
        (number.value, number.name) for number in Errno
    ]
    assert {name: code for _, name, code in rows} == {
        number.name: to_code(number).name for number in Errno
    }
    sent = re.findall(r"^\| (\d+) \| \w+ \| `.*\| (\d+) E\w+ \|$", text, re.M)
    assert [(int(code), int(number)) for code, number in sent] == [
        (code, to_number(code)) for code in Code if code is not Code.OK
    ]


def test_the_typed_view_of_the_core_is_that_of_api_h() -> None:
    stub = ast.parse((ROOT / "sdk/tidewire/_ffi.pyi").read_text())
    (lib,) = (
        node
        for node in stub.body
        if isinstance(node, ast.ClassDef) and node.name == "_Lib"
    )
    constants = {
        ast.unparse(node.target): ast.literal_eval(node.value)
        for node in lib.body
        if isinstance(node, ast.AnnAssign) and node.value is not None
    }
    functions = {
        node.name: [arg.arg for arg in node.args.posonlyargs + node.args.args]
        for node in lib.body
        if isinstance(node, ast.FunctionDef)
    }
    assert constants == CONSTANTS
    assert {name: len(args) - 1 for name, args in functions.items()} == PROTOTYPES
