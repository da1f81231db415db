"""The example's echo server, dressed (dress.py): its arguments.

Prints `listening on 127.0.0.1:PORT` and serves until it is ended by a signal.
"""

import argparse
import sys
from pathlib import Path

import tidewire as tw
from dress import dress

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "echo"))

from server import AsyncEcho, Echo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--admin", required=True)
    parser.add_argument("--async", dest="use_async", action="store_true")
    parser.add_argument("--threads", type=int, default=8)
    arguments = parser.parse_args()
    server = tw.Server(
        [AsyncEcho if arguments.use_async else Echo],
        listen=arguments.listen,
        options=tw.ServerOptions(
            threads=arguments.threads,
            admin=arguments.admin,
            **dress(["example.EchoService/Echo"]),
        ),
    )
    server.start()
    print(f"listening on {server.address}", flush=True)
    server.run()


if __name__ == "__main__":
    main()
