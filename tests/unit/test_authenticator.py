"""Who may be an authenticator, and the one that knows tokens."""

import hmac
from typing import Any

import pytest
import tidewire as tw
from tidewire.auth import Authenticator, TokenAuthenticator
from tidewire.errors import OptionError
from tidewire.options import ChannelOptions, ServerOptions


def test_tokens() -> None:
    tokens = TokenAuthenticator({"a": "secret", "b": b"\xff\x00"})
    assert isinstance(tokens, Authenticator)
    assert tokens.verify(b"secret", "peer") == "a"
    assert tokens.verify(b"\xff\x00", "peer") == "b"
    for wrong in (b"", b"secre", b"secrets", b"Secret", b"\xff"):
        assert tokens.verify(wrong, "peer") is None
    assert "secret" not in repr(tokens)
    assert "secret" not in str(vars(tokens))


def test_every_token_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A4: digests of one length, all of them, wherever the match is."""
    compared = []
    real = hmac.compare_digest

    def compare(a: Any, b: Any) -> bool:
        compared.append((len(a), len(b)))
        return real(a, b)

    tokens = TokenAuthenticator({"a": "1", "b": "22", "c": "333"})
    monkeypatch.setattr("hmac.compare_digest", compare)
    for credential in (b"1", b"333", b"none of these"):
        compared.clear()
        tokens.verify(credential, "peer")
        assert compared == [(32, 32)] * 3


@pytest.mark.parametrize(
    "tokens",
    [{}, {"": "a"}, {"a": ""}, {"a": b""}, {"n" * 1025: "a"}, {"a": "x", "b": b"x"}],
)
def test_tokens_that_make_no_sense(tokens: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        TokenAuthenticator(tokens)


@pytest.mark.parametrize("tokens", [{"a": 1}, {1: "a"}, {"a": None}])
def test_tokens_of_the_wrong_kind(tokens: dict[Any, Any]) -> None:
    with pytest.raises(TypeError):
        TokenAuthenticator(tokens)


class Late:
    async def verify(self, credential: bytes, peer: str) -> str | None:
        return None


@pytest.mark.parametrize("wrong", [1, "token", object(), TokenAuthenticator, Late()])
def test_what_is_no_authenticator(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"ServerOptions.authenticator is .*def verify"):
        ServerOptions(authenticator=wrong)


def test_the_time_for_a_verdict() -> None:
    assert ServerOptions().auth_timeout == 5.0
    with pytest.raises(OptionError, match="auth_timeout"):
        ServerOptions(auth_timeout=0)


@pytest.mark.parametrize("size", [0, 65537])
def test_credentials_that_are_too_small_or_large(size: int) -> None:
    with pytest.raises(OptionError, match="1 to 65536 bytes"):
        ChannelOptions(credentials=b"x" * size)


@pytest.mark.parametrize("wrong", ["hunter2", bytearray(b"hunter2"), 7])
def test_credentials_of_the_wrong_kind(wrong: Any) -> None:
    with pytest.raises(TypeError, match="credentials is a") as caught:
        ChannelOptions(credentials=wrong)
    assert "hunter2" not in str(caught.value)


def test_credentials_are_not_shown() -> None:
    """A4: by no repr."""
    options = ChannelOptions(credentials=b"hunter2")
    assert "hunter2" not in repr(options)
    with tw.Channel("127.0.0.1:1", options=options) as channel:
        assert "hunter2" not in repr(channel)
