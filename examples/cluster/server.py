"""One server of the example's cluster: answers with its name in front.

    python examples/cluster/server.py a

Prints its address and serves until SIGTERM.
"""

import sys
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
    name = sys.argv[1] if len(sys.argv) > 1 else "one"
    # Told to stop it serves on until its clients have read the new list.
    options = tw.ServerOptions(lame_duck=5.0)
    server = tw.Server([Echo(name)], listen="127.0.0.1:0", options=options).start()
    print(server.address, flush=True)
    server.run()


if __name__ == "__main__":
    main()
