"""The peer of rows 4 and 6: grpcio serving example.EchoService/Echo.

    python grpc_server.py sync|async

Prints `listening on 127.0.0.1:PORT` and serves until it is ended by a signal.
The sync server has 8 threads, as many as ours.
"""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
from bench_stubs import echo_pb2

THREADS = 8


def handlers(echo):
    method = grpc.unary_unary_rpc_method_handler(
        echo,
        request_deserializer=echo_pb2.EchoRequest.FromString,
        response_serializer=echo_pb2.EchoResponse.SerializeToString,
    )
    methods = {"Echo": method}
    return [grpc.method_handlers_generic_handler("example.EchoService", methods)]


def echo(request, context):
    return echo_pb2.EchoResponse(message=request.message)


async def async_echo(request, context):
    return echo_pb2.EchoResponse(message=request.message)


def announce(port):
    print(f"listening on 127.0.0.1:{port}", flush=True)


def serve_sync():
    server = grpc.server(ThreadPoolExecutor(THREADS), handlers(echo))
    announce(server.add_insecure_port("127.0.0.1:0"))
    server.start()
    server.wait_for_termination()


async def serve_async():
    server = grpc.aio.server(handlers=handlers(async_echo))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    announce(port)
    await server.wait_for_termination()


if __name__ == "__main__":
    if sys.argv[1:] == ["sync"]:
        serve_sync()
    elif sys.argv[1:] == ["async"]:
        asyncio.run(serve_async())
    else:
        sys.exit("usage: grpc_server.py sync|async")
