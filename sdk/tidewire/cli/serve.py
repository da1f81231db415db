"""`tidewire serve`: a server in worker processes, which import its module
themselves, so that SIGHUP loads new code."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import pickle
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tidewire.server import Server

__all__ = ["register"]

_LEVELS = ("debug", "info", "warning", "error")


def register(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "serve",
        help="run a server in worker processes",
        description=(
            "Runs a server in worker processes and restarts those that die."
            " SIGHUP replaces them one by one, with what the module says then;"
            " SIGTERM and SIGINT stop them gracefully, the second one at once."
        ),
    )
    parser.add_argument(
        "target",
        metavar="MODULE:SERVER",
        help="a tidewire.Server, or a function that makes one, in a module that can"
        " be imported here",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: the server's)"
    )
    parser.add_argument(
        "--listen",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="instead of the server's; may be given several times",
    )
    parser.add_argument(
        "--admin", metavar="ADDRESS", help="of /metrics and /health, the same"
    )
    parser.add_argument(
        "--register",
        metavar="URL",
        help="where clients find the server, such as etcd://host:2379/prefix",
    )
    parser.add_argument(
        "--advertise",
        metavar="ADDRESS",
        help="what is registered (default: the first that is listened on)",
    )
    parser.add_argument("--log-level", choices=_LEVELS, default="info")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from tidewire._processes import Child, ask
    from tidewire._supervisor import Supervisor

    logging.basicConfig(
        level=arguments.log_level.upper(),
        format="%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s",
    )

    def load() -> Server:
        return _load(arguments)

    def describe(child: Child) -> None:
        child.tell(b"P" + pickle.dumps(load()._plan()))

    # Nothing of the module comes into this process: a child looks for it.
    report = ask(describe)
    if report[:1] != b"P":
        text = report[1:].decode("utf-8", "replace").rstrip() or "its process died"
        print(f"tidewire: {arguments.target} cannot be served: {text}", file=sys.stderr)
        return 1
    try:
        Supervisor(pickle.loads(report[1:]), load).run()
    except OSError as error:
        print(f"tidewire: {error}", file=sys.stderr)
        return 1
    return 0


def _load(arguments: argparse.Namespace) -> Server:
    """In a process of its own: the server, which was not started."""
    from tidewire.server import Server

    name, colon, attribute = arguments.target.partition(":")
    if not (name and colon and attribute):
        raise SystemExit(f"{arguments.target!r} is not of the form MODULE:SERVER")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    found: Any = importlib.import_module(name)
    for part in attribute.split("."):
        found = getattr(found, part)
    if not isinstance(found, Server) and callable(found):
        found = found()
    if not isinstance(found, Server):
        raise SystemExit(f"it is a {type(found).__name__}; allowed: a tidewire.Server")
    found._override(
        arguments.listen,
        arguments.workers,
        arguments.admin,
        arguments.register,
        arguments.advertise,
    )
    return found
