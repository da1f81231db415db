"""Status codes: the 17 canonical ones, brpc's numbers, and the way between.

A number is what travels: brpc puts a plain int32 into its response meta,
and applications may use numbers of their own.  A `Code` is what a program
decides by.  `to_code` folds every number into one of the 17 codes;
`to_number` gives the number that a server sends for a code when the handler
names none.  docs/errors.md explains the choices.
"""

import enum
from typing import Final

__all__ = ["Code", "Errno", "to_code", "to_number"]


class Code(enum.IntEnum):
    """Canonical status, numbered as in gRPC."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class Errno(enum.IntEnum):
    """Error numbers on the wire: Linux errno values as they are, then brpc's
    own from 1001 (the client's fault), 2001 (the server's) and 3001 (RDMA)."""

    EPERM = 1
    ENOENT = 2
    EIO = 5
    ENXIO = 6
    EBADF = 9
    EAGAIN = 11
    ENOMEM = 12
    EACCES = 13
    EBUSY = 16
    EEXIST = 17
    EINVAL = 22
    EPIPE = 32
    ERANGE = 34
    EDEADLK = 35
    ENODATA = 61
    EPROTO = 71
    EOVERFLOW = 75
    ENETUNREACH = 101
    ECONNABORTED = 103
    ECONNRESET = 104
    ETIMEDOUT = 110
    """Connecting took too long.  A call's own deadline is ERPCTIMEDOUT."""
    ECONNREFUSED = 111
    EHOSTDOWN = 112
    EHOSTUNREACH = 113
    EREMOTEIO = 121
    ECANCELED = 125

    ENOSERVICE = 1001
    ENOMETHOD = 1002
    EREQUEST = 1003
    ERPCAUTH = 1004
    ETOOMANYFAILS = 1005
    EPCHANFINISH = 1006
    EBACKUPREQUEST = 1007
    ERPCTIMEDOUT = 1008
    EFAILEDSOCKET = 1009
    EHTTP = 1010
    EOVERCROWDED = 1011
    ERTMPPUBLISHABLE = 1012
    ERTMPCREATESTREAM = 1013
    EEOF = 1014
    EUNUSED = 1015
    ESSL = 1016
    EH2RUNOUTSTREAMS = 1017
    EREJECT = 1018
    EPROGREADTIMEOUT = 1019

    EINTERNAL = 2001
    ERESPONSE = 2002
    ELOGOFF = 2003
    ELIMIT = 2004
    ECLOSE = 2005
    EITP = 2006
    ESHUTDOWNWRITE = 2007

    ERDMA = 3001
    ERDMAMEM = 3002


# One row per code, so that a glance shows what a program would catch.
_NUMBERS: Final[dict[Code, tuple[Errno, ...]]] = {
    Code.CANCELLED: (Errno.ECANCELED, Errno.EPCHANFINISH),
    Code.UNKNOWN: (Errno.EREMOTEIO, Errno.EHTTP),
    Code.INVALID_ARGUMENT: (Errno.EREQUEST, Errno.EINVAL),
    Code.DEADLINE_EXCEEDED: (Errno.ERPCTIMEDOUT, Errno.EPROGREADTIMEOUT),
    Code.NOT_FOUND: (Errno.ENXIO, Errno.ENOENT),
    Code.ALREADY_EXISTS: (Errno.EEXIST,),
    Code.PERMISSION_DENIED: (Errno.EPERM, Errno.EACCES),
    Code.RESOURCE_EXHAUSTED: (
        Errno.ELIMIT,
        Errno.EOVERCROWDED,
        Errno.EAGAIN,
        Errno.ENOMEM,
    ),
    Code.FAILED_PRECONDITION: (Errno.EBUSY, Errno.EBADF),
    Code.ABORTED: (Errno.EDEADLK,),
    Code.OUT_OF_RANGE: (Errno.ERANGE, Errno.EOVERFLOW),
    Code.UNIMPLEMENTED: (Errno.ENOMETHOD, Errno.ENOSERVICE),
    Code.INTERNAL: (
        Errno.EINTERNAL,
        Errno.ERESPONSE,
        Errno.EPROTO,
        Errno.ETOOMANYFAILS,
        Errno.EBACKUPREQUEST,
        Errno.ERTMPPUBLISHABLE,
        Errno.ERTMPCREATESTREAM,
        Errno.EITP,
        Errno.ERDMAMEM,
    ),
    Code.UNAVAILABLE: (
        Errno.EHOSTDOWN,
        Errno.ECONNREFUSED,
        Errno.ECONNRESET,
        Errno.ECONNABORTED,
        Errno.ETIMEDOUT,
        Errno.ENETUNREACH,
        Errno.EHOSTUNREACH,
        Errno.EPIPE,
        Errno.ENODATA,
        Errno.EFAILEDSOCKET,
        Errno.EEOF,
        Errno.EUNUSED,
        Errno.ESSL,
        Errno.EH2RUNOUTSTREAMS,
        Errno.EREJECT,
        Errno.ELOGOFF,
        Errno.ECLOSE,
        Errno.ESHUTDOWNWRITE,
        Errno.ERDMA,
    ),
    Code.DATA_LOSS: (Errno.EIO,),
    Code.UNAUTHENTICATED: (Errno.ERPCAUTH,),
}

_CODE_OF: Final[dict[int, Code]] = {0: Code.OK} | {
    int(number): code for code, numbers in _NUMBERS.items() for number in numbers
}

# The first number of a row is the one a server sends.  It must not make a
# brpc client do more than fail the call: so NOT_FOUND is not ENOENT (retried
# three times by default), INVALID_ARGUMENT is not EINVAL (fails the server's
# main connection when connections are short) and UNAVAILABLE is not ELOGOFF
# (the client stops choosing the server).
_NUMBER_OF: Final[dict[Code, int]] = {Code.OK: 0} | {
    code: int(numbers[0]) for code, numbers in _NUMBERS.items()
}


def to_code(number: int) -> Code:
    """The code of a brpc error number; UNKNOWN for an application's own."""
    return _CODE_OF.get(number, Code.UNKNOWN)


def to_number(code: Code) -> int:
    """The number that a server sends for `code`; `to_code` leads back."""
    return _NUMBER_OF[code]
