"""The `tidewire` command; each subcommand is one module of this package."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from . import faults, gen, serve

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit status; argparse itself exits with 2."""
    parser = argparse.ArgumentParser(
        prog="tidewire", description="Tools around tidewire, RPC that speaks brpc."
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (gen, serve, faults):
        command.register(commands)
    arguments = parser.parse_args(argv)
    run: Callable[[argparse.Namespace], int] = arguments.run
    return run(arguments)
