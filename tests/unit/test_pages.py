"""The admin pages, as functions from request to response."""

import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as om
from prometheus_client.parser import text_string_to_metric_families as plain
from prometheus_client.registry import Collector
from tidewire.admin import Pages
from tidewire.admin.messages import Request, Response


def get(path: str, method: str = "GET", **headers: str) -> Request:
    return Request(method=method, path=path, headers=headers)


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("shop_orders", "Orders", registry=registry).inc(3)
    return registry


@pytest.fixture
def pages(registry: CollectorRegistry) -> Pages:
    return Pages(registry)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class TestMetrics:
    def test_text_by_default(self, pages: Pages) -> None:
        response = pages(get("/metrics"))
        assert (response.status, response.content_type.split(";")[0]) == (
            200,
            "text/plain",
        )
        (family, *_) = plain(response.body.decode())
        assert (family.name, family.samples[0].value) == ("shop_orders", 3)

    @pytest.mark.parametrize(
        "accept",
        [
            "application/openmetrics-text",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            "text/html, Application/OpenMetrics-Text;q=0.5",
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
            "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;q=0.4,*/*;q=0.1",
        ],
    )
    def test_openmetrics_when_asked_for(self, pages: Pages, accept: str) -> None:
        response = pages(get("/metrics", accept=accept))
        assert response.content_type.startswith(
            "application/openmetrics-text; version=1"
        )
        assert response.body.endswith(b"# EOF\n")
        assert [family.name for family in om(response.body.decode())] == ["shop_orders"]

    @pytest.mark.parametrize(
        "accept",
        [
            "",
            "*/*",
            "text/plain;version=1.0.0;escaping=values",
            "text/plain;version=peer's words",
            "text/plain;version=999.x",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;q=0.00, text/plain",
            "application/openmetrics-textual",
            ";;;,,,=",
        ],
    )
    def test_everything_else_gets_text(self, pages: Pages, accept: str) -> None:
        response = pages(get("/metrics", accept=accept))
        assert response.status == 200
        assert response.content_type.startswith("text/plain; version=")
        assert "words" not in response.content_type
        assert list(plain(response.body.decode()))

    def test_costly_scrapes_are_limited_to_a_share_of_time(self) -> None:
        clock = Clock()

        class Slow(Collector):
            def collect(self) -> Iterator[Metric]:
                clock.now += 0.5
                return iter(())

        registry = CollectorRegistry(auto_describe=False)
        registry.register(Slow())
        pages = Pages(registry, clock=clock)

        def statuses(count: int) -> list[int]:
            return [pages(get("/metrics")).status for _ in range(count)]

        # A second saved up; half a second spent and an eighth earned by each.
        assert statuses(5) == [200, 200, 200, 503, 503]
        assert pages(get("/health")).status == 200
        assert pages(get("/metrics")).headers["Retry-After"] == "1"
        clock.now += 2
        assert statuses(2) == [200, 503]
        clock.now += 3600
        assert statuses(4) == [200, 200, 200, 503]


class TestHealth:
    def test_ok_then_draining(self, registry: CollectorRegistry) -> None:
        trouble = ""
        pages = Pages(registry, trouble=lambda: trouble)
        assert (pages(get("/health")).status, pages(get("/health")).body) == (
            200,
            b"OK\n",
        )
        trouble = "draining"
        response = pages(get("/health"))
        assert (response.status, response.body) == (503, b"draining\n")


class TestIndex:
    def test_links_both_pages(self, pages: Pages, monkeypatch: Any) -> None:
        monkeypatch.setattr("tidewire.metrics.version", lambda: "<1.2>&")
        response = pages(get("/"))
        assert response.content_type == "text/html; charset=utf-8"
        text = response.body.decode()
        assert re.findall(r'href="([^"]+)"', text) == ["/metrics", "/health"]
        assert "Tidewire &lt;1.2&gt;&amp;" in text

    def test_browsers_are_kept_strict(self, pages: Pages) -> None:
        sent = pages(get("/")).encode(now=0, close=False)
        assert b"X-Content-Type-Options: nosniff\r\n" in sent
        assert re.search(rb"Content-Security-Policy: default-src 'none';", sent)
        assert b"Cache-Control: no-store\r\n" in sent


class TestRoutes:
    @pytest.mark.parametrize(
        "path",
        [
            "",
            "/metrics/",
            "//metrics",
            "/Metrics",
            "/./metrics",
            "/%2Fmetrics",
            "/metrics%2F",
            "/\\metrics",
            "/favicon.ico",
            "/<script>",
        ],
    )
    def test_only_exact_paths_match(self, pages: Pages, path: str) -> None:
        response = pages(get(path))
        assert (response.status, response.body) == (404, b"not found\n")

    @pytest.mark.parametrize("method", ["POST", "PUT", "OPTIONS", "get"])
    @pytest.mark.parametrize("path", ["/metrics", "/nothing", ""])
    def test_only_reading(self, pages: Pages, path: str, method: str) -> None:
        response = pages(get(path, method))
        assert response.status == 405
        assert response.headers == {"Allow": "GET, HEAD"}

    @pytest.mark.parametrize("path", ["/", "/metrics", "/health"])
    def test_head_is_answered_like_get(self, pages: Pages, path: str) -> None:
        assert pages(get(path, "HEAD")) == pages(get(path))


def test_a_failing_page_shows_an_id_and_logs_the_rest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(Collector):
        def collect(self) -> Iterator[Metric]:
            raise RuntimeError("secret detail")

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Broken())
    pages = Pages(registry)
    with caplog.at_level(logging.ERROR, logger="tidewire.admin"):
        response: Response = pages(get("/metrics"))
    assert response.status == 500
    match = re.fullmatch(rb"internal error, id ([0-9a-f]{16})\n", response.body)
    assert match
    (record,) = caplog.records
    assert match[1].decode() in record.getMessage()
    assert "secret detail" in caplog.text
