"""docs/metrics.md has every series that a scrape can show, and no other."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tidewire as tw
from harness import Serving, eventually
from prometheus_client import CollectorRegistry
from tidewire import metrics
from tidewire.errors import from_number

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text("utf-8")
ROWS = dict(re.findall(r"^\| `(tidewire_\w+)` \| (\w+) \|", TEXT, re.M))


@pytest.fixture
def shown(serve_def: Serving) -> dict[str, tuple[str, str]]:
    """Name of a series as documented: (kind, help), after a call that failed
    at both ends, so that every row is there."""
    from generated import echo_pb2, echo_tw

    def refuse(_request: Any, _ctx: tw.Context) -> Any:
        raise tw.NotFound("never")

    limits = tw.MethodOptions(max_concurrency=10, max_queue_age=100)
    server = serve_def(refuse, methods={"example.EchoService/Echo": limits})
    with tw.Channel(server.address) as channel:
        client = echo_tw.EchoClient(channel)
        with pytest.raises(tw.NotFound):
            client.echo(echo_pb2.EchoRequest(message=""), timeout=5.0)
    fill_the_clients_rows()
    # The server counts an error a moment after its answer has left.
    eventually(
        lambda: (
            "tidewire_server_errors" in {row.name for row in metrics.read_core().rows}
        )
    )
    registry = CollectorRegistry()
    metrics.register(registry)
    return {
        family.name + ("_total" if family.type == "counter" else ""): (
            family.type,
            family.documentation,
        )
        for family in registry.collect()
        if family.type != "info"
    }


def fill_the_clients_rows() -> None:
    """Those that are there once they count something."""
    from tidewire._attempts import BACKUP, Attempts, Lone, Try
    from tidewire._standing import Standing

    def failed(number: tw.Errno) -> tw.RpcError:
        return from_number(int(number), "", phase=tw.Phase.CONNECT)

    standing = Standing()
    for _ in range(151):
        standing.ended(failed(tw.Errno.EINTERNAL), True, 0, 0)
    info = tw.MethodInfo(service="a.B", name="C", request=bytes, response=bytes)
    policy = tw.RetryPolicy(budget_share=0, budget_floor=0)
    lone = Lone("127.0.0.1:1", None, False)
    attempts = Attempts(lone, info, tw.ChannelOptions(retry=policy), None)
    attempts.failed(attempts.next(), failed(tw.Errno.ECONNREFUSED))
    attempts.succeeded(Try(lone, 0, 1, BACKUP))


def test_every_series_is_documented_with_its_kind(
    shown: dict[str, tuple[str, str]],
) -> None:
    assert {name: kind for name, (kind, _) in shown.items()} == ROWS


def test_queries_use_series_that_exist(shown: dict[str, tuple[str, str]]) -> None:
    used = set(re.findall(r"\btidewire_\w+", TEXT)) - {"tidewire_build_info"}
    known = set(shown)
    for name, (kind, _) in shown.items():
        if kind == "histogram":
            known |= {f"{name}_{part}" for part in ("bucket", "sum", "count")}
    assert used <= known


def test_names_of_brpc_are_those_in_the_help(
    shown: dict[str, tuple[str, str]],
) -> None:
    for name, (_, text) in shown.items():
        for brpc in re.findall(r"\(brpc: (\w+)\)", text):
            [row] = re.findall(rf"^\| `{name}` .*$", TEXT, re.M)
            assert f"`{brpc}`" in row


def test_the_python_in_the_document_runs(
    shown: dict[str, tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    _, register, read = re.findall(r"^```python\n(.*?)^```$", TEXT, re.M | re.S)
    assert "metrics.register()" in register
    exec(compile(read, "docs/metrics.md", "exec"), {})
    assert re.search(r"^Echo \d", capsys.readouterr().out, re.M)


def test_buckets_are_as_described() -> None:
    bounds = metrics.read_core().bounds
    assert len(bounds) == 250
    assert bounds[7] == 1024
    assert bounds[:8] == tuple(128 * (i + 1) for i in range(8))
    assert 19 * 60e9 < bounds[-2] < 22 * 60e9
    for low, high in pairwise(bounds[7:-1]):
        assert (high - low) / 2 <= low / 16
    # Those shown: 17 and infinity.
    shown = metrics._folding(bounds)
    assert len(shown) == 18
    assert "0.00098304" in [le for le, _ in shown]


def test_what_is_held_is_shown(serve_def: Serving) -> None:
    """R8: bounded things have a gauge, and it counts them."""

    def gauge(name: str) -> int:
        snapshot = metrics.read_core()
        [row] = [r for r in snapshot.rows if r.name == name]
        return snapshot.cells[row.cell]

    names = ("servers", "peers", "inboxes", "calls", "requests", "blocks")
    before = {name: gauge(f"tidewire_{name}") for name in names}
    server = serve_def()
    with tw.Channel(server.address) as channel:
        channel._peer.open(server.address)
        assert gauge("tidewire_servers") == before["servers"] + 1
        assert gauge("tidewire_peers") == before["peers"] + 1
    serve_def.stop(server)
    for name, value in before.items():
        eventually(lambda name=name, value=value: gauge(f"tidewire_{name}") == value)
