"""`tidewire faults`: a proxy that does to connections what bad networks do."""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress
from typing import Any

__all__ = ["register"]


class _Format(argparse.RawDescriptionHelpFormatter):
    """Plans are shown as they are; looked up when help is asked for."""

    def add_text(self, text: str | None) -> None:
        if text == "plans":
            from tidewire.testing import plan

            text = plan.__doc__
        super().add_text(text)


def register(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "faults",
        help="a proxy that delays, cuts and swallows",
        description=(
            "A proxy that does to connections what bad networks and bad peers do, the"
            "\nsame for the same seed.  Ends with its standard input, or by Ctrl-C."
        ),
        epilog="plans",
        formatter_class=_Format,
    )
    parser.add_argument("--to", required=True, metavar="ADDRESS", help="the server")
    parser.add_argument("--listen", default="127.0.0.1:0", metavar="ADDRESS")
    parser.add_argument("--plan", default="none", help="what happens; see below")
    parser.add_argument("--seed", type=int, default=0, help="0: a fresh one")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from tidewire.testing import faults

    def say(text: str) -> None:
        print(text, flush=True)

    try:
        with (
            suppress(KeyboardInterrupt),
            faults(
                arguments.to,
                arguments.plan,
                listen=arguments.listen,
                seed=arguments.seed,
                log=say,
            ),
        ):
            sys.stdin.read()
    except (ValueError, OSError) as error:  # the plan, an address
        print(f"tidewire: {error}", file=sys.stderr)
        return 1
    return 0
