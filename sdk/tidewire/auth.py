"""Who calls: authentication of connections by their first message.

The server's side.  A client's is `ChannelOptions.credentials`.
"""

from collections.abc import Mapping
from typing import Final, Protocol, runtime_checkable

from tidewire.errors import OptionError

__all__ = ["Authenticator", "TokenAuthenticator"]


@runtime_checkable
class Authenticator(Protocol):
    """Decides whose a connection is; for `ServerOptions.authenticator`."""

    def verify(self, credential: bytes, peer: str) -> str | None:
        """The identity behind a connection's credential, 1 to 1024 bytes in
        UTF-8, or None to refuse it.  Unauthenticated refuses, too, and tells
        the client its message; any other exception refuses and is logged.

        Called once for each connection, in one thread of the server's own, one
        connection after the other: while it runs all other new connections
        wait, so it must not take long.  A plain `def`.
        """
        ...


class TokenAuthenticator:
    """Knows each caller by a secret: `TokenAuthenticator({"name": "secret"})`.

    How long a comparison takes says nothing about the secrets.
    """

    def __init__(self, tokens: Mapping[str, str | bytes]) -> None:
        """Raises OptionError for no token, an empty name or secret, and a
        secret that two names share."""
        import secrets  # here: importing tidewire must be quick

        if not tokens:
            raise OptionError("tokens is empty; allowed: one name and secret or more")
        # Digests are of one length, whatever the secret's.
        self._key: Final = secrets.token_bytes(32)
        self._names: Final[dict[bytes, str]] = {}
        for name, secret in tokens.items():
            if not isinstance(name, str) or not isinstance(secret, str | bytes):
                raise TypeError("tokens has an entry that is no str: str or bytes")
            if not name or len(name.encode()) > 1024 or not secret:
                raise OptionError(
                    f"tokens has an empty name or secret, or too long a name: {name!r};"
                    " allowed: names of 1 to 1024 bytes, secrets that are not empty"
                )
            data = secret.encode() if isinstance(secret, str) else secret
            digest = self._digest(data)
            if digest in self._names:
                raise OptionError(
                    f"tokens has one secret for {self._names[digest]!r} and {name!r}"
                )
            self._names[digest] = name

    def _digest(self, data: bytes) -> bytes:
        import hmac

        return hmac.digest(self._key, data, "sha256")

    def verify(self, credential: bytes, peer: str) -> str | None:
        """The name whose secret the credential is."""
        from hmac import compare_digest

        given = self._digest(credential)
        found = None
        # All of them, so that it takes as long wherever the match is.
        for digest, name in self._names.items():
            if compare_digest(digest, given):
                found = name
        return found

    def __repr__(self) -> str:
        return f"<TokenAuthenticator of {len(self._names)} names>"
