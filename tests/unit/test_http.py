"""HTTP/1.1 of the admin listener: strict, bounded, and blind to how the bytes
were split."""

import time

import pytest
from http_peer import CHUNKED, GET, Peer, ask, head
from tidewire.admin import grammar
from tidewire.admin.http import MAX_OUTSTANDING, HttpConnection
from tidewire.admin.messages import Response


class TestWellFormed:
    def test_an_answer(self) -> None:
        peer = ask(head(start="GET /x?a=b HTTP/1.1"))
        fields, _, body = peer.sent.partition(b"\r\n\r\n")
        assert body == b"GET /x a=b\n"
        assert fields.split(b"\r\n")[:4] == [
            b"HTTP/1.1 200 OK",
            b"Date: Sun, 06 Nov 1994 08:49:37 GMT",
            b"Content-Type: text/plain; charset=utf-8",
            b"Content-Length: 11",
        ]
        assert b"X-Content-Type-Options: nosniff" in fields
        assert b"Content-Security-Policy: default-src 'none';" in fields
        assert b"Connection:" not in fields
        assert peer.closes == [False]

    def test_headers(self) -> None:
        (request,) = ask(head("X-Y:  b \t", "x-y:c", "Empty:", "O: \xfc\t;")).requests
        assert request.headers == {"host": "a", "x-y": "b, c", "empty": "", "o": "ü\t;"}

    def test_head_has_no_body_but_its_length(self) -> None:
        peer = ask(head(start="HEAD /x HTTP/1.1"))
        assert b"Content-Length: 9\r\n" in peer.sent
        assert peer.sent.endswith(b"\r\n\r\n")

    @pytest.mark.parametrize(
        ("version", "connection", "close", "said"),
        [
            ("1.1", None, False, None),
            ("1.1", "keep-alive", False, None),
            ("1.1", "close", True, b"close"),
            ("1.1", "TE, Close", True, b"close"),
            ("1.1", "closed", False, None),
            ("1.0", None, True, b"close"),
            ("1.0", "Keep-Alive", False, b"keep-alive"),
            ("1.0", "keep-alive, close", True, b"close"),
        ],
    )
    def test_who_closes(
        self, version: str, connection: str | None, close: bool, said: bytes | None
    ) -> None:
        lines = [] if connection is None else [f"Connection: {connection}"]
        first = head(*lines, start=f"GET / HTTP/{version}")
        peer = ask(first + GET)
        assert len(peer.requests) == 2 - close
        assert peer.closes[0] is close
        answer = peer.sent.partition(b"\r\n\r\n")[0]
        assert (
            (b"Connection: " + said in answer) if said else (b"\r\nConn" not in answer)
        )

    def test_http_1_0_needs_no_host(self) -> None:
        assert ask(head(start="GET / HTTP/1.0", host=False)).statuses == [200]

    @pytest.mark.parametrize(
        ("target", "path", "query"),
        [
            ("/", "/", ""),
            ("/metrics?", "/metrics", ""),
            ("/metrics?a=%2F&b=?/", "/metrics", "a=%2F&b=?/"),
            ("/%6detrics", "/metrics", ""),
            ("/%6Detrics", "/metrics", ""),
            ("/%256detrics", "/%6detrics", ""),
            ("/a%2Fb", "/a%2Fb", ""),
            ("/a%5cb", "/a%5cb", ""),
            ("/a\\b", "/a\\b", ""),
            ("//metrics", "//metrics", ""),
            ("/./metrics", "/./metrics", ""),
            ("/x/../metrics", "/x/../metrics", ""),
            ("/%00", "/\0", ""),
            ("/%ff", "/\ufffd", ""),
            ("http://a/metrics?x", "/metrics", "x"),
            ("HTTP://a:80/metrics", "/metrics", ""),
            ("http://a", "/", ""),
            ("http://[::1]:80?x", "/", "x"),
        ],
    )
    def test_targets(self, target: str, path: str, query: str) -> None:
        (request,) = ask(head(start=f"GET {target} HTTP/1.1")).requests
        assert (request.path, request.query) == (path, query)

    def test_an_empty_line_before_a_request_is_ignored(self) -> None:
        assert ask(b"\r\n" + GET + b"\r\n" + GET).statuses == [200, 200]

    def test_upgrades_are_not_offered(self) -> None:
        upgrade = head("Connection: Upgrade", "Upgrade: h2c", "HTTP2-Settings: AA")
        assert ask(upgrade + GET).statuses == [200, 200]
        body = head("Connection: Upgrade", "Upgrade: h2c", "Content-Length: 40")
        assert ask(body + GET.ljust(40) + GET).statuses == [200, 200]

    def test_methods_are_the_handlers_matter(self) -> None:
        for method in ("POST", "OPTIONS", "DELETE"):
            assert ask(head(start=f"{method} / HTTP/1.1")).statuses == [200]
        assert ask(head(start="OPTIONS * HTTP/1.1")).requests[0].path == ""


class TestBodies:
    @pytest.mark.parametrize("size", [0, 1, grammar.MAX_BODY])
    def test_are_dropped(self, size: int) -> None:
        data = head(f"Content-Length: {size}") + b"G" * size + GET
        peer = Peer().feed(data) if size > 1 else ask(data)
        assert peer.statuses == [200, 200]

    def test_chunks_are_dropped(self) -> None:
        body = b'3\r\nGET\r\n0a;x="y z";q\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n'
        peer = ask(CHUNKED + body + GET)
        assert peer.statuses == [200, 200]
        assert "trailer" not in peer.requests[0].headers

    def test_coding_names_have_no_case(self) -> None:
        data = CHUNKED.replace(b"chunked", b"CHUNKED") + b"0\r\n\r\n"
        assert ask(data).statuses == [200]

    @pytest.mark.parametrize(
        "framing",
        [
            [f"Content-Length: {grammar.MAX_BODY + 1}"],
            ["Content-Length: 00000000000000000000099999"],
            ["Content-Length: 18446744073709551615"],
        ],
    )
    def test_long_ones_are_refused_unread(self, framing: list[str]) -> None:
        peer = ask(head(*framing, "Expect: 100-continue") + b"GG")
        assert (peer.statuses, peer.closes) == ([413], [True])

    def test_long_chunked_ones_are_refused(self) -> None:
        assert ask(CHUNKED + b"10001\r\n").statuses == [413]
        part = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
        assert Peer().feed(CHUNKED + part * 2 + b"1\r\n").statuses == [413]
        assert Peer().feed(CHUNKED + part * 2 + b"0\r\n\r\n").statuses == [200]

    def test_100_continue_comes_before_the_body(self) -> None:
        for start, body in (
            (head("Content-Length: 2", "Expect: 100-Continue"), b"ab"),
            (CHUNKED[:-2] + b"Expect: 100-continue\r\n\r\n", b"1\r\na\r\n0\r\n\r\n"),
        ):
            peer = Peer().feed(start)
            assert (peer.sent, peer.closes) == (
                b"HTTP/1.1 100 Continue\r\n\r\n",
                [False],
            )
            assert peer.feed(body).statuses == [100, 200]
            assert ask(start + body).statuses == [100, 200]

    def test_100_continue_without_need(self) -> None:
        assert ask(head("Expect: 100-continue")).statuses == [200]
        old = head("Expect: 100-continue", "Content-Length: 1", start="GET / HTTP/1.0")
        assert ask(old + b"x").statuses == [200]

    def test_other_expectations_fail(self) -> None:
        assert ask(head("Expect: tea") + GET).statuses == [417]


class TestLimits:
    def test_request_line(self) -> None:
        def start(size: int) -> bytes:
            return b"GET /%s HTTP/1.1" % (b"a" * (size - 14))

        rest = b"\r\nHost: a\r\n\r\n"
        assert ask(start(grammar.MAX_REQUEST_LINE) + rest).statuses == [200]
        assert ask(start(grammar.MAX_REQUEST_LINE + 1) + rest).statuses == [414]
        assert ask(b"G" * (grammar.MAX_REQUEST_LINE + 2)).statuses == [414]

    def test_headers(self) -> None:
        room = grammar.MAX_HEADERS - len("Host: a\r\n") - len("A: \r\n")

        def one(size: int) -> bytes:
            return head("A: " + "b" * size)

        assert Peer().feed(one(room)).statuses == [200]
        assert Peer().feed(one(room + 1)).statuses == [431]
        assert Peer().feed(head(*["A: " + "b" * 995] * 66)).statuses == [431]
        endless = Peer().feed(GET[:16])
        while not endless.sent:
            endless.feed(b"A: " + b"b" * 997)
        assert endless.statuses == [431]

    def test_fields(self) -> None:
        assert ask(head(*["A: b"] * (grammar.MAX_FIELDS - 1))).statuses == [200]
        assert ask(head(*["A: b"] * grammar.MAX_FIELDS)).statuses == [431]

    def test_trailers_count_as_headers(self) -> None:
        room = grammar.MAX_FIELDS - 2

        def trailers(count: int) -> bytes:
            return CHUNKED + b"0\r\n" + b"A: b\r\n" * count + b"\r\n"

        assert ask(trailers(room)).statuses == [200]
        assert ask(trailers(room + 1)).statuses == [431]
        long = b"A: %s\r\n" % (b"b" * 40_000)
        peer = Peer().feed(CHUNKED + b"0\r\n" + long + long)
        assert peer.statuses == [431]

    def test_chunk_extensions(self) -> None:
        def chunks(*sizes: int) -> bytes:
            parts = (b"1;%s\r\nx\r\n" % (b"e" * (size - 1)) for size in sizes)
            return CHUNKED + b"".join(parts) + b"0\r\n\r\n"

        most = grammar.MAX_CHUNK_EXTENSIONS
        assert Peer().feed(chunks(most)).statuses == [200]
        assert Peer().feed(chunks(most + 1)).statuses == [431]
        assert Peer().feed(chunks(most // 2, most // 2)).statuses == [200]
        assert Peer().feed(chunks(most // 2, most // 2, 2)).statuses == [431]
        assert ask(CHUNKED + b"1;" + b"e" * (most + 20)).statuses == [431]

    def test_pipelined_requests_are_answered_in_order_some_at_a_time(self) -> None:
        count = MAX_OUTSTANDING * 2 + 1
        data = b"".join(
            head(start=f"GET /{i} HTTP/1.1", host=True) for i in range(count)
        )
        peer = Peer()
        batches = [len(peer.connection.feed(data))]
        while peer.connection.more:
            batches.append(len(peer.connection.feed(b"")))
        assert batches == [MAX_OUTSTANDING, MAX_OUTSTANDING, 1]
        assert [r.path for r in peer.requests] == [f"/{i}" for i in range(count)]

    def test_time_is_linear(self) -> None:
        """A value of blanks, and a line byte by byte: what a careless pattern or
        search takes minutes for."""
        start = time.thread_time()
        Peer().feed(head("A:" + " " * 60_000 + "\0"))
        peer = Peer().feed(GET[:16] + b"A: ")
        for _ in range(60_000):
            peer.feed(b" ")
        Peer().feed(head("Content-Length: " + "0" * 60_000))
        assert time.thread_time() - start < 5


class TestConnection:
    def test_nothing_is_parsed_after_the_end(self) -> None:
        peer = Peer().feed(head("Connection: close"))
        assert peer.connection.closed
        assert peer.connection.feed(GET) == []
        assert len(peer.requests) == 1

    def test_what_a_handler_raises_comes_out_and_ends_it(self) -> None:
        connection = HttpConnection(lambda request: 1 / 0)  # type: ignore[arg-type,return-value]
        with pytest.raises(ZeroDivisionError):
            connection.feed(GET)
        assert connection.closed
        assert connection.feed(GET) == []


class TestResponse:
    @pytest.mark.parametrize("text", ["a\r\nb", "a\nb", "a\rb", "a\0b", "ж"])
    def test_headers_that_would_break_the_message_are_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match="not allowed"):
            Response(headers={"X": text})
        with pytest.raises(ValueError, match="not allowed"):
            Response(headers={text: "x"})
        with pytest.raises(ValueError, match="not allowed"):
            Response(content_type=text)
