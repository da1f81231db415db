"""The store as a process.

python examples/store/serve.py --token alice=secret
"""

import argparse
import logging
import sqlite3
import sys
from pathlib import Path

import tidewire as tw
from database import Database
from service import make_server


def _token(text: str) -> tuple[str, str]:
    name, equals, secret = text.partition("=")
    if not (name and equals and secret):
        raise argparse.ArgumentTypeError("NAME=SECRET")
    return name, secret


def main() -> None:
    """Serves until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(description="The Tidewire store.")
    add = parser.add_argument
    add("--listen", default="127.0.0.1:8010", metavar="HOST:PORT")
    add("--admin", default=None, metavar="HOST:PORT", help="/metrics and /health")
    add("--workers", type=int, default=2, metavar="N", help="default: 2")
    add("--data", type=Path, default=Path("store.db"), metavar="FILE")
    add(
        "--token",
        type=_token,
        action="append",
        required=True,
        metavar="NAME=SECRET",
        help="who may call; once for each",
    )
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    try:
        Database.create(options.data)
        server = make_server(
            options.listen,
            options.data,
            dict(options.token),
            options.admin,
            options.workers,
        )
        server.run()
    except (OSError, sqlite3.Error, tw.OptionError) as error:
        sys.exit(f"cannot serve: {error}")


if __name__ == "__main__":
    main()
