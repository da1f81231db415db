"""Row 6: an asyncio client with DEPTH calls in flight; prints calls/s.

    python async_calls.py tidewire|grpc HOST:PORT SECONDS DEPTH

The first moments are warm-up and do not count.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable

from bench_stubs import echo_pb2

MESSAGE = "x" * 16
CALL_SECONDS = 5.0
WARMUP_SECONDS = 0.2


async def calls_per_second(
    call: Callable[[echo_pb2.EchoRequest], Awaitable[echo_pb2.EchoResponse]],
    seconds: float,
    depth: int,
) -> float:
    request = echo_pb2.EchoRequest(message=MESSAGE)
    start = time.perf_counter() + WARMUP_SECONDS
    end = start + seconds
    done = 0

    async def caller() -> None:
        nonlocal done
        while (now := time.perf_counter()) < end:
            reply = await call(request)
            assert reply.message == MESSAGE
            done += now >= start

    await asyncio.gather(*(caller() for _ in range(depth)))
    return done / (time.perf_counter() - start)


async def with_tidewire(address: str, seconds: float, depth: int) -> float:
    import tidewire as tw
    from bench_stubs import echo_tw

    options = tw.ChannelOptions(timeout=CALL_SECONDS)
    async with tw.AsyncChannel(address, options=options) as channel:
        client = echo_tw.AsyncEchoClient(channel)
        return await calls_per_second(client.echo, seconds, depth)


async def with_grpc(address: str, seconds: float, depth: int) -> float:
    import grpc

    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(
            "/example.EchoService/Echo",
            request_serializer=echo_pb2.EchoRequest.SerializeToString,
            response_deserializer=echo_pb2.EchoResponse.FromString,
        )
        return await calls_per_second(
            lambda request: call(request, timeout=CALL_SECONDS), seconds, depth
        )


if __name__ == "__main__":
    kind, address, seconds, depth = sys.argv[1:]
    measure = {"tidewire": with_tidewire, "grpc": with_grpc}[kind]
    print(asyncio.run(measure(address, float(seconds), int(depth))))
