"""Lists in etcd: etcd:// and etcds://, to be read and to be entered in."""

import contextlib
import json
import logging
import secrets
import ssl
from collections.abc import Generator, Iterator
from typing import Any, Final
from urllib.parse import parse_qsl

from tidewire.address import Address, parse_address
from tidewire.errors import AddressError, OptionError
from tidewire.naming.backoff import Backoff
from tidewire.naming.etcd_client import EtcdClient, decoded, encoded, number_of, parsed
from tidewire.naming.lists import parse_node
from tidewire.naming.naming import Naming, Publish, Stopping
from tidewire.naming.registry import Registration, Registry
from tidewire.node import Node

__all__ = ["EtcdNaming", "EtcdRegistration"]

_log: Final = logging.getLogger("tidewire.naming")

_ALLOWED: Final = "host:2379,host:2379/prefix/of/the/service"


class EtcdNaming(Naming, Registry):
    """etcd://host1:2379,host2:2379/prefix/of/service: the values of all keys
    that begin with "/prefix/of/service/", and those that come and go.

    etcds:// speaks TLS; "?ca=/path" says whose certificates are trusted, if not
    those of the system's authorities, "?cert=/path&key=/path" who we are."""

    def __init__(self, text: str, *, tls: bool = False) -> None:
        where, _, query = text.partition("?")
        endpoints, slash, path = where.partition("/")
        self._tls: Final = _tls_of(query, tls)
        self._endpoints: Final = [_endpoint(part) for part in endpoints.split(",")]
        name = path.strip("/")
        if not slash or not name or any(c.isspace() for c in name):
            raise AddressError(
                f"the prefix is {slash + path!r}; allowed: {_ALLOWED}, not empty and"
                " without blanks"
            )
        self.prefix: Final = f"/{name}/"
        """What keys of the service begin with."""
        # Several processes register the same address: each has a key.
        self._id: Final = secrets.token_hex(8)

    def _client(self, stopping: Stopping | None = None) -> EtcdClient:
        return EtcdClient(self._endpoints, self._tls, stopping)

    # ---- who is there

    def run(self, publish: Publish, stopping: Stopping) -> None:
        client = self._client(stopping)
        backoff = Backoff(stopping, self.prefix, "the list stays as it was")
        keys = _Keys(self.prefix)
        while not stopping:
            try:
                if not keys.next:
                    keys.read(client)
                    publish(keys.nodes)
                with contextlib.closing(keys.watch(client)) as changes:
                    for changed in changes:
                        backoff.worked()
                        if changed:
                            publish(keys.nodes)
                client.turn()
            except OSError as error:
                client.turn()
                if not stopping:
                    backoff.failed(error)

    # ---- entering a server

    def register(self, node: Node, ttl: int) -> "EtcdRegistration":
        client = self._client()
        granted = client.call("/v3/lease/grant", {"TTL": str(ttl)})
        with _understood():
            lease = str(granted["ID"])
        value = {"address": node.address} | ({"tag": node.tag} if node.tag else {})
        entry = {
            "key": encoded(f"{self.prefix}{node.address}/{self._id}"),
            "value": encoded(json.dumps(value)),
            # A key that had another one leaves that.
            "lease": lease,
        }
        client.call("/v3/kv/put", entry)
        return EtcdRegistration(client, lease)


class EtcdRegistration(Registration):
    """A key that ends with its lease."""

    def __init__(self, client: EtcdClient, lease: str) -> None:
        self._client: Final = client
        self._lease: Final = {"ID": lease}

    def keep(self) -> None:
        answer = self._client.call("/v3/lease/keepalive", self._lease)
        with _understood():
            left = number_of(answer["result"], "TTL")
        if left <= 0:
            raise ConnectionError("the lease is gone")

    def revoke(self) -> None:
        self._client.call("/v3/lease/revoke", self._lease)


class _Keys:
    """The keys below a prefix as they are at one revision of the store."""

    def __init__(self, prefix: str) -> None:
        # "/" is followed by "0": every key that begins with the prefix.
        self._range: Final = {
            "key": encoded(prefix),
            "range_end": encoded(prefix[:-1] + "0"),
        }
        self._nodes: dict[str, Node] = {}
        self.next = 0
        """The revision of the first change that is not known; 0: read all."""

    @property
    def nodes(self) -> list[Node]:
        return [self._nodes[key] for key in sorted(self._nodes)]

    def read(self, client: EtcdClient) -> None:
        """All of them."""
        answer = client.call("/v3/kv/range", self._range)
        with _understood():
            revision = number_of(answer["header"], "revision")
            found = {}
            for pair in answer.get("kvs", []):
                key = decoded(pair["key"])
                node = self._node(key, pair)
                if node is not None:
                    found[key] = node
        self._nodes = found
        self.next = revision + 1

    def watch(self, client: EtcdClient) -> Generator[bool, None, None]:
        """Follows this endpoint: True for each change of the list, False for other
        signs of life.  Ends when the endpoint was quiet for long."""
        begin = {**self._range, "start_revision": str(self.next)}
        stream = client.stream("/v3/watch", {"create_request": begin})
        with contextlib.closing(stream) as messages:
            for message in messages:
                with _understood():
                    self._check(message)
                    changed = self._apply(message)
                yield changed

    def _check(self, message: dict[str, Any]) -> None:
        """Raises what says that the watch does not go on."""
        if message.get("compact_revision"):
            begin, self.next = self.next, 0
            raise ConnectionError(
                f"changes since revision {begin} are compacted: all is read again"
            )
        if message.get("canceled"):
            reason = message.get("cancel_reason") or "no reason given"
            raise ConnectionError(f"the watch is cancelled: {reason}")
        if message.get("created"):
            revision = number_of(message["header"], "revision")
            if revision + 1 < self.next:
                self.next = 0
                raise ConnectionError(
                    f"the store has gone back to revision {revision}: all is read again"
                )

    def _apply(self, message: dict[str, Any]) -> bool:
        events = message.get("events", [])
        for event in events:
            pair = event["kv"]
            key = decoded(pair["key"])
            if event.get("type") == "DELETE":
                self._nodes.pop(key, None)
            else:
                node = self._node(key, pair)
                if node is not None:
                    self._nodes[key] = node
            self.next = max(self.next, number_of(pair, "mod_revision") + 1)
        return bool(events)

    def _node(self, key: str, pair: dict[str, Any]) -> Node | None:
        """Of a key's value; of its last good one if this is none."""
        try:
            return _parse(decoded(pair.get("value", "")))
        except ValueError as error:
            _log.warning("%s: %s", key, error)
            return self._nodes.get(key)


@contextlib.contextmanager
def _understood() -> Iterator[None]:
    """An answer that is not shaped as etcd's is an OSError."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ConnectionError(f"no answer of etcd: {error!r}") from error


def _parse(value: str) -> Node:
    """{"address": "10.0.0.1:80", "tag": "a"}, or with "weight": 5 for a tag, or
    "10.0.0.1:80 a" as in files.  Raises ValueError."""
    if not value.lstrip().startswith("{"):
        return parse_node(value)
    found = parsed(value)
    address, tag, weight = (found.get(name) for name in ("address", "tag", "weight"))
    if tag is None or tag == "":
        tag = "" if weight is None else weight
    if isinstance(tag, bool) or not isinstance(tag, str | int):
        raise ValueError(f"{value!r} has no text as its tag, or number as its weight")
    if not isinstance(address, str):
        raise ValueError(f'{value!r} has no address; allowed: "address": "host:port"')
    return Node(address=parse_address(address).text, tag=str(tag))


def _endpoint(text: str) -> Address:
    address = parse_address(text)
    if address.kind == "unix" or not address.port:
        raise AddressError(f"{text!r} is no endpoint of etcd; allowed: {_ALLOWED}")
    return address


def _tls_of(query: str, tls: bool) -> ssl.SSLContext | None:
    if not tls:
        if query:
            raise OptionError(f"{query} is no option of etcd://; allowed: none")
        return None
    said = dict(parse_qsl(query, keep_blank_values=True))
    if not said.keys() <= {"ca", "cert", "key"} or ("cert" in said) != ("key" in said):
        raise OptionError(
            f"{query} is no option of etcds://; allowed: ca=/path of trusted"
            " certificates, cert=/path&key=/path of our own"
        )
    try:
        context = ssl.create_default_context(cafile=said.get("ca"))
        if "cert" in said:
            context.load_cert_chain(said["cert"], said["key"])
    except OSError as error:  # SSLError is one
        raise OptionError(f"{query} cannot be read: {error}") from None
    return context
