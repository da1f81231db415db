"""The admin pages: /, /metrics and /health.

A page takes a request and returns a response; none changes anything, and none
shows settings, peers or stacks.
"""

import html
import logging
import re
import secrets
import time
from collections.abc import Callable
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.exposition import choose_encoder

from tidewire import metrics
from tidewire.admin.messages import Request, Response, plain

__all__ = ["Pages"]

_log: Final = logging.getLogger("tidewire.admin")

_OPENMETRICS: Final = "application/openmetrics-text"
_REFUSES: Final = re.compile(r"q=0(\.0*)?")
_INDEX: Final = """\
<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>Tidewire</title></head>
<body>
<h1>Tidewire {version}</h1>
<ul>
<li><a href="/metrics">metrics</a></li>
<li><a href="/health">health</a></li>
</ul>
</body>
</html>
"""


class Pages:
    """Answers requests; a Handler for HttpConnection.  One thread at a time.

    `registry` is what /metrics shows; None: prometheus_client's default one,
    to which the core's counters are then added.  `trouble` says why the server
    should get no calls, "" when it is well; it is called from the admin thread
    and must not wait.
    """

    def __init__(
        self,
        registry: CollectorRegistry | None = None,
        *,
        trouble: Callable[[], str] = lambda: "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if registry is None:
            metrics.register()
            registry = REGISTRY
        self._registry = registry
        # /metrics?workers=1: the core's counters for each process.
        self._by_worker = CollectorRegistry()
        self._by_worker.register(metrics.CoreCollector(metrics.read_workers))
        self._trouble = trouble
        self._budget = _Budget(clock)
        self._pages: Final[dict[str, Callable[[Request], Response]]] = {
            "/": self._index,
            "/metrics": self._metrics,
            "/health": self._health,
        }

    def __call__(self, request: Request) -> Response:
        """Never raises: a page that fails is answered with an id, and the log
        has the traceback with the same id."""
        if request.method not in ("GET", "HEAD"):
            return plain(405, "method not allowed", {"Allow": "GET, HEAD"})
        page = self._pages.get(request.path)
        if page is None:
            return plain(404, "not found")
        try:
            return page(request)
        except Exception:
            error_id = secrets.token_hex(8)
            _log.exception("admin page %s failed, id %s", request.path, error_id)
            return plain(500, f"internal error, id {error_id}")

    def _index(self, _request: Request) -> Response:
        text = _INDEX.format(version=html.escape(metrics.version()))
        return Response(content_type="text/html; charset=utf-8", body=text.encode())

    def _health(self, _request: Request) -> Response:
        trouble = self._trouble()
        return plain(503, trouble) if trouble else plain(200, "OK")

    def _metrics(self, request: Request) -> Response:
        if not self._budget.is_left():
            return plain(503, "asked for too often", {"Retry-After": "1"})
        with self._budget:
            encode, content_type = choose_encoder(_accept(request))
            by_worker = "workers=1" in request.query.split("&")
            registry = self._by_worker if by_worker else self._registry
            return Response(content_type=content_type, body=encode(registry))


def _accept(request: Request) -> str:
    """What choose_encoder shall see: it ignores q=0, fails on a version that
    is no number and puts the peer's words into the content type."""
    for choice in request.headers.get("accept", "").split(","):
        kind, *parameters = (part.strip() for part in choice.lower().split(";"))
        if kind == _OPENMETRICS and not any(map(_REFUSES.fullmatch, parameters)):
            return f"{_OPENMETRICS}; version=1.0.0"
    return ""


class _Budget:
    """Limits the share of time that scrapes may take from the service, so
    that cheap pages may be asked for often and costly ones may not."""

    SHARE: Final = 0.25
    """Seconds earned per second."""
    MOST: Final = 1.0
    """Seconds saved up at most."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._left = self.MOST
        self._at = clock()

    def is_left(self) -> bool:
        now = self._clock()
        earned = (now - self._at) * self.SHARE
        self._left = min(self.MOST, self._left + earned)
        self._at = now
        return self._left > 0

    def __enter__(self) -> None:
        self._start = self._clock()

    def __exit__(self, *_: object) -> None:
        self._left -= self._clock() - self._start
