"""Requests that are refused: one answer, then the end."""

import random

import pytest
from http_peer import CHUNKED, GET, Peer, ask, head

MALFORMED = {
    "length and coding": head("Content-Length: 3", "Transfer-Encoding: chunked"),
    "coding and length": head("Transfer-Encoding: chunked", "Content-Length: 3"),
    "coding of 1.0": CHUNKED.replace(b"1.1", b"1.0"),
    "other coding": head("Transfer-Encoding: gzip"),
    "two codings": head("Transfer-Encoding: gzip, chunked"),
    "coding twice": head("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
    "identity": head("Transfer-Encoding: identity"),
    "quoted coding": head('Transfer-Encoding: "chunked"'),
    "odd coding": head("Transfer-Encoding: chunked;x"),
    "empty coding": head("Transfer-Encoding:"),
    "coding with a vertical tab": head("Transfer-Encoding: \vchunked"),
    "two lengths": head("Content-Length: 1", "Content-Length: 2"),
    "one length twice": head("Content-Length: 1", "Content-Length: 1"),
    "list of lengths": head("Content-Length: 1, 1"),
    "signed length": head("Content-Length: +1"),
    "negative length": head("Content-Length: -1"),
    "blank in length": head("Content-Length: 1 1"),
    "hex length": head("Content-Length: 0x1"),
    "empty length": head("Content-Length:"),
    "superscript length": head("Content-Length: \xb2"),
    "fraction": head("Content-Length: 1.0"),
    "blank before colon": head("Host2 : a"),
    "tab before colon": head("Host2\t: a"),
    "no colon": head("Host2"),
    "empty name": head(": a"),
    "odd name": head("Ho(st: a"),
    "8-bit name": head("H\xf6st: a"),
    "folded": head("A: b", " c"),
    "folded by tab": head("A: b", "\tc"),
    "blank first line": head(" A: b"),
    "bare CR": head("A: b\rc"),
    "CR CR LF": head("A: b\r"),
    "bare LF": GET.replace(b"\r\n", b"\n"),
    "bare LF after a header": GET.replace(b"a\r\n", b"a\n"),
    "bare LF at the end": GET[:-2] + b"\n",
    "NUL": head("A: b\0c"),
    "control byte": head("A: b\x01"),
    "DEL": head("A: b\x7f"),
    "no host": head(host=False),
    "two hosts": head("Host: b"),
    "odd host": head("Host: a/b", host=False),
    "host with user": head("Host: u@a", host=False),
    "version 0.9": b"GET /\r\n",
    "version 1.2": head(start="GET / HTTP/1.2"),
    "version 2.0": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "version 1.10": head(start="GET / HTTP/1.10"),
    "version in lower case": head(start="GET / http/1.1"),
    "version 01.1": head(start="GET / HTTP/01.1"),
    "other protocol": head(start="GET / ICE/1.0"),
    "no version": head(start="GET / "),
    "two blanks": head(start="GET  / HTTP/1.1"),
    "tab": head(start="GET\t/ HTTP/1.1"),
    "blank in front": head(start=" GET / HTTP/1.1"),
    "blank behind": head(start="GET / HTTP/1.1 "),
    "blank in target": head(start="GET /a b HTTP/1.1"),
    "method with a control byte": head(start="G\x01T / HTTP/1.1"),
    "8-bit target": head(start="GET /\xe4 HTTP/1.1"),
    "fragment": head(start="GET /a#b HTTP/1.1"),
    "fragment after query": head(start="GET /a?b#c HTTP/1.1"),
    "asterisk": head(start="GET * HTTP/1.1"),
    "relative": head(start="GET metrics HTTP/1.1"),
    "encoded slash first": head(start="GET %2Fmetrics HTTP/1.1"),
    "bad percent": head(start="GET /%zz HTTP/1.1"),
    "short percent": head(start="GET /%6 HTTP/1.1"),
    "other scheme": head(start="GET https://a/ HTTP/1.1"),
    "user in target": head(start="GET http://u@a/ HTTP/1.1"),
    "no authority": head(start="GET http:///metrics HTTP/1.1"),
    "empty lines": b"\r\n\r\n" + GET,
    "chunk size of 17 digits": CHUNKED + b"0" * 16 + b"1\r\nx\r\n",
    "empty chunk size": CHUNKED + b"\r\n",
    "signed chunk size": CHUNKED + b"+1\r\nx\r\n",
    "0x chunk size": CHUNKED + b"0x1\r\nx\r\n",
    "blank after chunk size": CHUNKED + b"1 \r\nx\r\n",
    "blank before chunk size": CHUNKED + b" 1\r\nx\r\n",
    "chunk size and bare LF": CHUNKED + b"1\nx\r\n",
    "control byte in an extension": CHUNKED + b"1;\x01\r\nx\r\n",
    "bare CR in an extension": CHUNKED + b"1;a\rb\r\nx\r\n",
    "chunk too long": CHUNKED + b"1\r\nxy\r\n",
    "chunk and bare LF": CHUNKED + b"1\r\nx\n0\r\n\r\n",
    "odd trailer": CHUNKED + b"0\r\nA : b\r\n\r\n",
    "folded trailer": CHUNKED + b"0\r\nA: b\r\n c\r\n\r\n",
    "length as trailer": CHUNKED + b"0\r\nContent-Length: 5\r\n\r\n",
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_malformed_is_400_and_the_end(data: bytes) -> None:
    peer = ask(data + GET)
    assert (peer.statuses, peer.closes) == ([400], [True])
    assert not peer.requests
    assert b"Connection: close" in peer.sent


@pytest.mark.parametrize("start", ["FOO / HTTP/1.1", "CONNECT a:80 HTTP/1.1"])
def test_methods_nobody_knows_are_405_and_the_end(start: str) -> None:
    peer = ask(head(start=start) + GET)
    assert (peer.statuses, peer.closes) == ([405], [True])
    assert b"Allow: GET, HEAD\r\n" in peer.sent


def test_an_error_answer_to_head_has_no_body() -> None:
    peer = ask(head("Content-Length: x", start="HEAD / HTTP/1.1"))
    assert peer.statuses == [400]
    assert peer.sent.endswith(b"\r\n\r\n")


def test_random_bytes_never_raise() -> None:
    rng = random.Random(1)
    words = [*MALFORMED.values(), GET, CHUNKED, b"\r\n", b"\0", b"0\r\n\r\n", b" "]
    for _ in range(2000):
        data = b"".join(rng.choices(words, k=3))
        at = rng.randrange(len(data))
        peer = Peer()
        for part in (data[:at], data[at + rng.randint(0, 2) :]):
            peer.feed(part)
