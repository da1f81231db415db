"""Row 5: one call at a time; prints the median time of a call in microseconds.

    python one_call.py tidewire HOST:PORT SECONDS
    python one_call.py socket HOST:PORT SECONDS

`socket` sends the very bytes our client sends, recorded here from one call
of it, and receives the answer: what any Python client pays at least.
"""

import socket
import statistics
import struct
import sys
import threading
import time
from collections.abc import Callable

import tidewire as tw
from bench_stubs import echo_pb2, echo_tw

HEADER = 12
WARMUP_CALLS = 200
CALL_SECONDS = 5.0
MESSAGE = "x" * 16


def median_us(call: Callable[[], object], seconds: float) -> float:
    for _ in range(WARMUP_CALLS):
        call()
    times = []
    clock = time.perf_counter_ns
    end = clock() + int(seconds * 1e9)
    while (start := clock()) < end:
        call()
        times.append(clock() - start)
    return statistics.median(times) / 1000


def read_frame(connection: socket.socket) -> bytes:
    data = b""
    while len(data) < HEADER or len(data) < HEADER + body_size(data):
        more = connection.recv(65536)
        if not more:
            raise ConnectionError("closed within a frame")
        data += more
    return data


def body_size(frame: bytes) -> int:
    return struct.unpack_from(">I", frame, 4)[0]


def recorded_request() -> bytes:
    """The frame our client sends for one call."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        # Daemon: the call fails as soon as the connection is closed below.
        threading.Thread(target=call_in_vain, args=(port,), daemon=True).start()
        listener.settimeout(CALL_SECONDS)
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(CALL_SECONDS)
            return read_frame(connection)


def call_in_vain(port: int) -> None:
    options = tw.ChannelOptions(timeout=CALL_SECONDS)
    try:
        with tw.Channel(f"127.0.0.1:{port}", options=options) as channel:
            echo_tw.EchoClient(channel).echo(echo_pb2.EchoRequest(message=MESSAGE))
    except tw.RpcError:
        pass  # expected: nobody answers


def with_tidewire(address: str, seconds: float) -> float:
    options = tw.ChannelOptions(timeout=CALL_SECONDS)
    request = echo_pb2.EchoRequest(message=MESSAGE)
    with tw.Channel(address, options=options) as channel:
        client = echo_tw.EchoClient(channel)
        assert client.echo(request).message == MESSAGE
        return median_us(lambda: client.echo(request), seconds)


def with_socket(address: str, seconds: float) -> float:
    request = recorded_request()
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), CALL_SECONDS) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(None)
        connection.sendall(request)
        answer = len(read_frame(connection))

        def call() -> None:
            connection.send(request)
            if len(connection.recv(65536)) != answer:
                raise ConnectionError("not one whole answer")

        return median_us(call, seconds)


if __name__ == "__main__":
    kind, address, seconds = sys.argv[1:]
    measure = {"tidewire": with_tidewire, "socket": with_socket}[kind]
    print(measure(address, float(seconds)))
