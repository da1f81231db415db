"""One server of the example's cluster: answers with its name in front.

    python examples/cluster/server.py a [--register etcd://127.0.0.1:2379/echo]

Prints its address, once it is registered, and serves until SIGTERM.
"""

import argparse
import sys
import time
from pathlib import Path

import tidewire as tw

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "echo"))

try:
    from gen import echo_pb2, echo_tw
except ModuleNotFoundError as error:
    if error.name != "gen":
        raise
    sys.exit(
        "no stubs yet; from the project's directory: tidewire gen"
        " examples/echo/echo.proto -I examples/echo -o examples/echo/gen"
    )


class Echo(echo_tw.EchoService):
    """Says who answers."""

    def __init__(self, name: str) -> None:
        self.name = name

    def echo(
        self, request: echo_pb2.EchoRequest, ctx: tw.Context
    ) -> echo_pb2.EchoResponse:
        return echo_pb2.EchoResponse(message=f"{self.name} {request.message}")


def main() -> None:
    """Serves until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(description="Says who answers.")
    parser.add_argument("name")
    parser.add_argument("--register", metavar="URL", help="where clients look")
    arguments = parser.parse_args()
    register = tw.Register(url=arguments.register) if arguments.register else None
    # Told to stop it serves on until its clients have read the new list.
    options = tw.ServerOptions(lame_duck=5.0, register=register)
    service = Echo(arguments.name)
    server = tw.Server([service], listen="127.0.0.1:0", options=options).start()
    while register is not None and not server.registered:
        time.sleep(0.01)
    print(server.address, flush=True)
    server.run()


if __name__ == "__main__":
    main()
