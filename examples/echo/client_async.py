"""An asyncio client of the echo server; its calls are all under way at once.

python examples/echo/client_async.py --connect 127.0.0.1:8000 --count 100
"""

import argparse
import asyncio
import sys

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


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description="Calls the echo server.")
    add = parser.add_argument
    add("--connect", required=True, metavar="HOST:PORT", help="or unix:/path")
    add("--message", default="hello", metavar="TEXT")
    add("--attachment", metavar="TEXT", help="bytes beside the message")
    add("--fail-code", type=int, metavar="N", help="make the server fail so")
    add("--sleep-ms", type=int, metavar="N", help="make the server wait")
    add("--timeout", type=float, default=0.5, metavar="S", help="default: 0.5")
    add("--count", type=int, default=1, metavar="N", help="calls at a time")
    return parser.parse_args()


async def call(echo: echo_tw.AsyncEchoClient, options: argparse.Namespace) -> bool:
    """Calls once and prints what came of it: whether it was answered."""
    request = echo_pb2.EchoRequest(
        message=options.message,
        sleep_ms=options.sleep_ms,
        fail_code=options.fail_code,
    )
    attachment = None if options.attachment is None else options.attachment.encode()
    try:
        # await echo.echo(request) would give the message alone.
        response = await echo.echo.call(
            request, timeout=options.timeout, attachment=attachment
        )
    except tw.RpcError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return False
    print(f"{response.message.message} [{response.elapsed * 1e3:.1f} ms]")
    if response.attachment:
        print(f"attachment: {bytes(response.attachment).decode()}")
    return True


async def main() -> int:
    """0 when every call was answered."""
    options = arguments()
    try:
        # Connects at the first call, and again after a connection failed.
        async with tw.AsyncChannel(options.connect) as channel:
            echo = echo_tw.AsyncEchoClient(channel)
            calls = [call(echo, options) for _ in range(options.count)]
            answered = await asyncio.gather(*calls)
    except ValueError as error:  # the address, the timeout
        print(error, file=sys.stderr)
        return 1
    return 0 if all(answered) else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
