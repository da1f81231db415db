"""What to look at first when a call has failed so."""

from typing import Final

from tidewire.codes import Errno

__all__ = ["hint_for"]

_BY_PHASE: Final[dict[tuple[int, str], str]] = {
    (Errno.ECONNREFUSED, "connect"): (
        "nobody listens there: is the server running, and the address right?"
    ),
    (Errno.ENOENT, "connect"): (
        "there is no such socket file: is the server running, and the path right?"
    ),
    (Errno.ETIMEDOUT, "connect"): (
        "the host does not answer within connect_timeout: is it up, and is no"
        " firewall in between?"
    ),
    (Errno.EHOSTDOWN, "resolve"): (
        "is the name right, and can this machine resolve it?"
    ),
    (Errno.ERPCTIMEDOUT, "resolve"): "the resolver of names is slow or down",
    (Errno.ERPCTIMEDOUT, "connect"): "the time went into connecting",
    (Errno.ERPCTIMEDOUT, "write"): (
        "the server does not read: is it overloaded, or the network full?"
    ),
    (Errno.ERPCTIMEDOUT, "read"): (
        "the server has the call: look at its latency, or give a longer timeout"
    ),
    (Errno.EINVAL, "read"): "does the peer speak baidu_std on that port?",
    (Errno.EEOF, "read"): (
        "the server has ended the connection: has it stopped, or refused the request?"
    ),
    (Errno.EOVERCROWDED, "write"): (
        "max_unwritten bytes wait already: the server reads too slowly"
    ),
    (Errno.ERESPONSE, "read"): "do both sides have the same .proto?",
}
_BY_NUMBER: Final[dict[int, str]] = {
    Errno.ENOSERVICE: "is it the right server, and its .proto that of this client?",
    Errno.ENOMETHOD: "is it the right server, and its .proto that of this client?",
    Errno.ELIMIT: "the server has enough to do: fewer calls at a time, or more servers",
    Errno.ERPCAUTH: "are ChannelOptions.credentials what the server wants?",
}


def hint_for(number: int, phase: str) -> str:
    """phase: the name of the Phase in small letters.  Empty: there is none."""
    return _BY_PHASE.get((number, phase)) or _BY_NUMBER.get(number, "")
