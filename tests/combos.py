"""What the tests of combo channels share."""

from typing import Any

import tidewire as tw
from generated import echo_pb2, echo_tw

REQUEST = echo_pb2.EchoRequest(message="hello")
IDEMPOTENT = tw.MethodInfo(
    service="example.EchoService",
    name="Echo",
    request=echo_pb2.EchoRequest,
    response=echo_pb2.EchoResponse,
    idempotency=tw.Idempotency.IDEMPOTENT,
)


def named(name: str) -> Any:
    """A handler that puts its name before the message."""
    return lambda request, ctx: echo_pb2.EchoResponse(
        message=f"{name} {request.message}"
    )


def failing(error: type[tw.RpcError] = tw.NotFound) -> Any:
    """A handler that raises that."""

    def fail(request: Any, ctx: tw.Context) -> Any:
        raise error("no")

    return fail


def joined(replies: list[Any]) -> Any:
    """A merge from which one sees who has answered."""
    return echo_pb2.EchoResponse(
        message="|".join("-" if one is None else one.message for one in replies)
    )


def kind_of(face: Any, name: str) -> Any:
    """The class of the face: tw.ParallelChannel or tw.AsyncParallelChannel."""
    return getattr(tw, name if face.name == "blocking" else f"Async{name}")


def opened(face: Any, name: str, *what: Any, **how: Any) -> Any:
    """A combo channel that is closed at the end of the test, before the others."""
    options = {"timeout": 30.0, **how.pop("options", {})}
    channel = kind_of(face, name)(*what, options=tw.ChannelOptions(**options), **how)
    face._channels.append(channel)
    return channel


def over(face: Any, *ends: Any) -> list[Any]:
    """Channels: those given, and new ones to servers or addresses."""
    return [
        one if hasattr(one, "unary") else face.channel(getattr(one, "address", one))
        for one in ends
    ]


def parallel(face: Any, ends: list[Any], **how: Any) -> Any:
    """A ParallelChannel over channels, servers or addresses."""
    how.setdefault("merge", joined)
    return opened(face, "ParallelChannel", over(face, *ends), **how)


def selective(face: Any, ends: list[Any], **how: Any) -> Any:
    """A SelectiveChannel over channels, servers or addresses."""
    return opened(face, "SelectiveChannel", over(face, *ends), **how)


def client(face: Any, channel: Any) -> Any:
    return face.client(echo_tw, channel)


def ask(face: Any, way: str, client: Any, **how: Any) -> str:
    """The message of the answer, by each way that a face has."""
    if way == "full":
        return face.full(client, "echo", REQUEST, **how).message.message
    if way == "start":
        return face.start(client, "echo", REQUEST, **how).result(30).message
    return face.call(client, "echo", REQUEST, **how).message
