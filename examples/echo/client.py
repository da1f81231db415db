"""A blocking client of the echo server.

python examples/echo/client.py --connect 127.0.0.1:8000 --attachment bytes
"""

import argparse
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
    add("--count", type=int, default=1, metavar="N", help="calls, one by one")
    return parser.parse_args()


def main() -> int:
    """0 when every call was answered; the first that was not ends the run."""
    options = arguments()
    request = echo_pb2.EchoRequest(
        message=options.message,
        sleep_ms=options.sleep_ms,
        fail_code=options.fail_code,
    )
    attachment = None if options.attachment is None else options.attachment.encode()
    try:
        # Connects at the first call, and again after a connection failed.
        with tw.Channel(options.connect) as channel:
            echo = echo_tw.EchoClient(channel)
            for _ in range(options.count):
                # echo.echo(request) would give the message alone.
                response = echo.echo.call(
                    request, timeout=options.timeout, attachment=attachment
                )
                print(f"{response.message.message} [{response.elapsed * 1e3:.1f} ms]")
                if response.attachment:
                    print(f"attachment: {bytes(response.attachment).decode()}")
    except tw.RpcError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except ValueError as error:  # the address, the timeout
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
