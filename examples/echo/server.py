"""The echo server of the examples: `def` handlers, or `async def` with --async.

python examples/echo/server.py --listen 127.0.0.1:8000 --admin 127.0.0.1:8001
"""

import argparse
import asyncio
import logging
import sys
import time

import tidewire as tw

try:
    from gen import echo_pb2, echo_tw
except ModuleNotFoundError as error:
    if error.name != "gen":
        raise
    sys.exit(
        "no stubs yet; from the project's directory: tidewire gen"
        " examples/echo/echo.proto -I examples/echo -o examples/echo/gen"
    )


def answer(request: echo_pb2.EchoRequest, ctx: tw.Context) -> echo_pb2.EchoResponse:
    """The request's message; the attachment goes back as it came, and the
    answer is compressed and checked as the request was."""
    if request.fail_code:
        raise tw.RpcError(
            f"asked to fail with {request.fail_code}", number=request.fail_code
        )
    if ctx.attachment:
        ctx.reply_attachment = ctx.attachment
    ctx.reply_coding = ctx.coding
    return echo_pb2.EchoResponse(message=request.message)


class Echo(echo_tw.EchoService):
    """Runs on worker threads."""

    def echo(
        self, request: echo_pb2.EchoRequest, ctx: tw.Context
    ) -> echo_pb2.EchoResponse:
        if request.sleep_ms > 0:
            time.sleep(request.sleep_ms / 1000)
        return answer(request, ctx)


class AsyncEcho(echo_tw.EchoService):
    """Runs on the asyncio loop."""

    async def echo(
        self, request: echo_pb2.EchoRequest, ctx: tw.Context
    ) -> echo_pb2.EchoResponse:
        if request.sleep_ms > 0:
            await asyncio.sleep(request.sleep_ms / 1000)
        return answer(request, ctx)


def main() -> None:
    """Serves until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(description="The Tidewire echo server.")
    parser.add_argument("--listen", default="127.0.0.1:8000", metavar="HOST:PORT")
    parser.add_argument("--admin", default=None, metavar="HOST:PORT")
    parser.add_argument("--async", dest="use_async", action="store_true")
    parser.add_argument("--threads", type=int, default=8)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    try:
        server = tw.Server(
            [AsyncEcho if arguments.use_async else Echo],
            listen=arguments.listen,
            options=tw.ServerOptions(threads=arguments.threads, admin=arguments.admin),
        )
        server.start()
    except (OSError, tw.OptionError) as error:
        sys.exit(f"cannot serve: {error}")
    print(f"listening on {server.address}", flush=True)
    if server.admin_address is not None:
        print(f"admin on http://{server.admin_address}", flush=True)
    server.run()


if __name__ == "__main__":
    main()
