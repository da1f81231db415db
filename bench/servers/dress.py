"""What a server in production has on beside its admin listener: a hook around
every call, a limit of the server, a limit and an age in the queue of each method."""

from collections.abc import Iterable
from typing import Any

import tidewire as tw


class Count(tw.Hook):
    """Looks at each call as it comes, and at what became of it."""

    def __init__(self) -> None:
        self.calls = 0
        self.failed = 0

    def on_start(self, call: tw.Call) -> None:
        self.calls += call.method is not None

    def on_end(self, call: tw.Call, outcome: tw.Outcome) -> None:
        self.failed += outcome.error is not None


def dress(methods: Iterable[str]) -> dict[str, Any]:
    """Options for these methods; nothing that the loads send is refused."""
    limits = tw.MethodOptions(
        max_concurrency=10_000, max_queue_age=60.0, max_message=32 << 20
    )
    return {
        "hooks": [Count()],
        "max_concurrency": 20_000,
        "methods": dict.fromkeys(methods, limits),
    }
