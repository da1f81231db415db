"""Options refuse what is wrong, at once and in words; addresses."""

import dataclasses
import math
import pickle
from typing import Any

import pytest
from tidewire.address import MAX_ADDRESSES, parse_addresses
from tidewire.errors import AddressError, OptionError
from tidewire.options import (
    Address,
    AutoLimit,
    ChannelOptions,
    HealthCheck,
    KeepAlive,
    MethodOptions,
    ServerOptions,
    SocketOptions,
    TimeoutLimit,
    parse_address,
)
from tidewire.service import MethodInfo


class Index:
    """An int as numpy has them."""

    def __index__(self) -> int:
        return 4


class TestOptions:
    def test_defaults_pass(self) -> None:
        server, channel = ServerOptions(), ChannelOptions()
        assert (server.threads, server.max_message) == (8, 64 * 1024 * 1024)
        assert (channel.timeout, channel.connect_timeout) == (0.5, 0.2)

    @pytest.mark.parametrize("cls", [ServerOptions, ChannelOptions])
    def test_frozen_and_by_keyword(self, cls: Any) -> None:
        with pytest.raises(TypeError):
            cls(8)
        with pytest.raises(dataclasses.FrozenInstanceError):
            cls().max_message = 1
        assert pickle.loads(pickle.dumps(cls(max_message=7))) == cls(max_message=7)

    @pytest.mark.parametrize(
        ("cls", "name", "least", "most"),
        [
            (ServerOptions, "workers", 1, 48),
            (ServerOptions, "threads", 1, 1024),
            (ServerOptions, "loops", 1, 16),
            (ServerOptions, "max_message", 1, 2**31 - 1),
            (ServerOptions, "max_unwritten", 1, 2**40),
            (ServerOptions, "max_pending", 1, 2**20),
            (ServerOptions, "max_pending_bytes", 1, 2**40),
            (ServerOptions, "max_connections", 0, 2**20),
            (ServerOptions, "backlog", 1, 65535),
            (TimeoutLimit, "max_concurrency", 1, 2**20),
            (KeepAlive, "idle", 1, 32767),
            (KeepAlive, "interval", 1, 32767),
            (KeepAlive, "count", 1, 127),
            (ChannelOptions, "max_message", 1, 2**31 - 1),
            (ChannelOptions, "max_unwritten", 1, 2**40),
        ],
    )
    def test_whole_numbers(self, cls: Any, name: str, least: int, most: int) -> None:
        for value in (least, most):
            assert getattr(cls(**{name: value}), name) == value
        converted = getattr(cls(**{name: Index()}), name)
        assert (type(converted), converted) == (int, 4)
        for value in (least - 1, most + 1):
            with pytest.raises(OptionError) as caught:
                cls(**{name: value})
            assert f"{cls.__name__}.{name} is {value} (int)" in str(caught.value)
            assert f"{least} to {most} (" in str(caught.value)
        for wrong in (True, 8.0, "8", None):
            with pytest.raises(TypeError, match=f"{cls.__name__}.{name} is"):
                cls(**{name: wrong})

    @pytest.mark.parametrize(
        ("cls", "name", "zero", "none"),
        [
            (ServerOptions, "drain", True, False),
            (ServerOptions, "lame_duck", True, True),
            (ServerOptions, "first_byte_timeout", False, True),
            (ServerOptions, "stall_timeout", False, True),
            (ServerOptions, "idle_timeout", False, True),
            (ServerOptions, "max_queue_age", False, True),
            (MethodOptions, "max_queue_age", False, True),
            (AutoLimit, "window", False, False),
            (AutoLimit, "remeasure", False, False),
            (TimeoutLimit, "timeout", False, False),
            (TimeoutLimit, "window", False, False),
            (ChannelOptions, "timeout", False, True),
            (ChannelOptions, "connect_timeout", False, True),
        ],
    )
    def test_seconds(self, cls: Any, name: str, zero: bool, none: bool) -> None:
        assert getattr(cls(**{name: 3}), name) == 3.0
        assert type(getattr(cls(**{name: 3}), name)) is float
        if none:
            assert getattr(cls(**{name: None}), name) is None
        if zero:
            assert getattr(cls(**{name: 0}), name) == 0.0
        refused = [-1, math.nan, math.inf, 1e10, 10**400, *([] if zero else [0, -0.0])]
        for value in refused:
            with pytest.raises(OptionError, match=f"{cls.__name__}.{name} is .*second"):
                cls(**{name: value})
        wrong: Any
        for wrong in (True, "1", b"1", [], *([] if none else [None])):
            with pytest.raises(TypeError, match=f"{cls.__name__}.{name} is .*second"):
                cls(**{name: wrong})

    def test_methods(self) -> None:
        name, most = "a.B/c", 1 << 20
        given = {name: MethodOptions(max_message=most)}
        options = ServerOptions(max_message=most, methods=given)
        given.clear()
        assert options.methods == {name: MethodOptions(max_message=most)}
        assert ServerOptions().methods == {}
        assert hash(options) == hash(ServerOptions(max_message=most))
        for least in (1, None):
            assert MethodOptions(max_message=least).max_message == least
        with pytest.raises(OptionError, match="MethodOptions.max_message is 0"):
            MethodOptions(max_message=0)
        with pytest.raises(OptionError, match=r"methods\['a.B/c'\].max_message is"):
            ServerOptions(max_message=most - 1, methods=options.methods)
        for wrong in (None, [name], {name: most}, {b"a.B/c": MethodOptions()}):
            with pytest.raises(TypeError, match=r"ServerOptions\.methods is"):
                ServerOptions(methods=wrong)  # type: ignore[arg-type]

    @pytest.mark.parametrize(("cls", "least"), [(ServerOptions, 0), (MethodOptions, 1)])
    def test_max_concurrency(self, cls: Any, least: int) -> None:
        for good in (least, 2**20, Index(), AutoLimit(least=3), TimeoutLimit()):
            limit = cls(max_concurrency=good).max_concurrency
            assert limit == (4 if isinstance(good, Index) else good)
        assert cls(max_concurrency="auto").max_concurrency == AutoLimit()
        for value in (least - 1, 2**20 + 1, "Auto", "timeout"):
            with pytest.raises(OptionError) as caught:
                cls(max_concurrency=value)
            assert f"{cls.__name__}.max_concurrency is {value!r}" in str(caught.value)
            assert f"or a whole number from {least} to 1048576" in str(caught.value)
        for wrong in (True, 8.0, b"auto", AutoLimit):
            with pytest.raises(TypeError, match=f"{cls.__name__}.max_concurrency is"):
                cls(max_concurrency=wrong)

    def test_auto_limit(self) -> None:
        for name in ("least", "initial", "most"):
            with pytest.raises(OptionError, match=rf"AutoLimit.{name} is 0 .*\(calls"):
                AutoLimit(**{name: 0})
        assert AutoLimit(least=7, initial=7, most=7).initial == 7
        for given in ({"least": 41}, {"most": 39}, {"initial": 10_001}):
            with pytest.raises(OptionError, match=r"AutoLimit.initial is \d+; allowed"):
                AutoLimit(**given)

    def test_sockets(self) -> None:
        options = SocketOptions(
            keepalive=KeepAlive(),
            user_timeout=1,
            tos=0,
            send_buffer=1,
            receive_buffer=2**30,
            bind="2001:DB8::0001",
        )
        assert options.bind == "2001:db8::1"
        assert options.user_timeout == 1.0
        assert ChannelOptions(socket=options).socket is options
        assert SocketOptions() == SocketOptions(tos=None, bind=None)
        with pytest.raises(TypeError):
            SocketOptions(KeepAlive())  # type: ignore[misc]

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("tos", 256),
            ("tos", -1),
            ("send_buffer", 0),
            ("receive_buffer", 2**30 + 1),
            ("user_timeout", 0),
            ("user_timeout", 3e6),
            ("bind", "localhost"),
            ("bind", "10.0.0.1:80"),
            ("bind", "fe80::1%eth0"),
        ],
    )
    def test_socket_values_refused(self, name: str, value: Any) -> None:
        with pytest.raises(OptionError, match=rf"SocketOptions\.{name} is .*allowed"):
            SocketOptions(**{name: value})

    @pytest.mark.parametrize(
        ("name", "value"),
        [("tos", True), ("keepalive", True), ("bind", 1), ("user_timeout", "1")],
    )
    def test_socket_types_refused(self, name: str, value: Any) -> None:
        with pytest.raises(TypeError, match=rf"SocketOptions\.{name} is .*allowed"):
            SocketOptions(**{name: value})

    def test_listening(self) -> None:
        assert ServerOptions().unix_mode == 0o600
        assert ServerOptions(unix_mode=None).unix_mode is None
        for mode in (0, 0o1000, -1):
            with pytest.raises(OptionError, match=r"ServerOptions\.unix_mode is"):
                ServerOptions(unix_mode=mode)
        with pytest.raises(TypeError, match="True or False"):
            ServerOptions(reuse_port=1)  # type: ignore[arg-type]
        with pytest.raises(OptionError, match=r"ServerOptions\.socket\.bind is"):
            ServerOptions(socket=SocketOptions(bind="127.0.0.1"))
        for cls in (ServerOptions, ChannelOptions):
            with pytest.raises(TypeError, match=rf"{cls.__name__}\.socket is"):
                cls(socket={})  # type: ignore[arg-type]

    def test_codec_needs_both_functions(self) -> None:
        class Half:
            def encoder(self, cls: type) -> Any: ...

        class Whole(Half):
            def decoder(self, cls: type) -> Any: ...

        codec = Whole()
        assert ServerOptions(codec=codec).codec is codec
        for wrong in (Half(), Whole, "json"):
            with pytest.raises(TypeError, match=r"ServerOptions\.codec is"):
                ServerOptions(codec=wrong)  # type: ignore[arg-type]

    def test_connections(self) -> None:
        for connection in ("single", "pooled", "short"):
            ChannelOptions(connection=connection)
        allowed = "allowed: 'single', 'pooled', 'short'"
        with pytest.raises(OptionError, match=f"connection is 'own' .*{allowed}"):
            ChannelOptions(connection="own")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=f"connection is None .*{allowed}"):
            ChannelOptions(connection=None)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="connection_group is 1 .*any text"):
            ChannelOptions(connection_group=1)  # type: ignore[arg-type]

    def test_send_deadline_is_a_bool(self) -> None:
        with pytest.raises(TypeError, match="True or False"):
            ChannelOptions(send_deadline=1)  # type: ignore[arg-type]

    def test_long_values_are_cut_in_messages(self) -> None:
        with pytest.raises(TypeError) as caught:
            ServerOptions(threads="x" * 10_000)  # type: ignore[arg-type]
        assert len(str(caught.value)) < 300


class TestAdmin:
    @pytest.mark.parametrize(
        ("given", "kept"),
        [
            ("127.0.0.1:8001", "127.0.0.1:8001"),
            ("127.9.9.9:0", "127.9.9.9:0"),
            ("[0:0:0:0:0:0:0:1]:8001", "[::1]:8001"),
            ("unix:/run/admin.sock", "unix:/run/admin.sock"),
        ],
    )
    def test_this_machine_only(self, given: str, kept: str) -> None:
        assert ServerOptions(admin=given).admin == kept

    @pytest.mark.parametrize(
        "given",
        [
            "0.0.0.0:80",
            "[::]:80",
            "10.0.0.1:80",
            "localhost:80",
            "[::ffff:127.0.0.1]:80",
        ],
    )
    def test_other_machines_are_kept_out(self, given: str) -> None:
        with pytest.raises(AddressError, match="no authentication yet") as caught:
            ServerOptions(admin=given)
        assert "ServerOptions.admin" in str(caught.value)
        assert "127.0.0.1:8001" in str(caught.value)

    def test_errors_name_the_option(self) -> None:
        with pytest.raises(AddressError, match=r"ServerOptions\.admin: .*port"):
            ServerOptions(admin="127.0.0.1")
        with pytest.raises(TypeError, match=r"ServerOptions\.admin: .*str"):
            ServerOptions(admin=8001)  # type: ignore[arg-type]


LONGEST = "unix:/" + "p" * 106


class TestAddress:
    @pytest.mark.parametrize(
        ("text", "kind", "host", "port", "canonical"),
        [
            ("1.2.3.4:80", "ipv4", "1.2.3.4", 80, "1.2.3.4:80"),
            ("0.0.0.0:0", "ipv4", "0.0.0.0", 0, "0.0.0.0:0"),
            ("1.2.3.4:00080", "ipv4", "1.2.3.4", 80, "1.2.3.4:80"),
            ("[::1]:65535", "ipv6", "::1", 65535, "[::1]:65535"),
            ("[2001:DB8::0:1]:80", "ipv6", "2001:db8::1", 80, "[2001:db8::1]:80"),
            ("[::ffff:1.2.3.4]:80", "ipv6", "::ffff:102:304", 80, None),
            ("Shop.example.:80", "name", "shop.example.", 80, "shop.example.:80"),
            ("localhost:80", "name", "localhost", 80, "localhost:80"),
            ("cart_v1.svc-a:80", "name", "cart_v1.svc-a", 80, "cart_v1.svc-a:80"),
            ("1.2.3.com:80", "name", "1.2.3.com", 80, "1.2.3.com:80"),
            ("unix:/run/a b:c", "unix", "/run/a b:c", 0, "unix:/run/a b:c"),
            (LONGEST, "unix", LONGEST[5:], 0, LONGEST),
        ],
    )
    def test_forms(
        self, text: str, kind: str, host: str, port: int, canonical: str | None
    ) -> None:
        address = parse_address(text)
        assert (address.kind, address.host, address.port) == (kind, host, port)
        assert canonical in (None, address.text)
        assert parse_address(address.text) == address
        assert isinstance(hash(address), int)

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("", "port is missing"),
            ("1.2.3.4", "port is missing"),
            ("host", "port is missing"),
            (":80", "host is empty"),
            ("1.2.3.4:", "port is ''"),
            ("1.2.3.4:65536", "port is '65536'"),
            ("1.2.3.4:-1", "port is '-1'"),
            ("1.2.3.4:+80", "port is"),
            ("1.2.3.4: 80", "port is"),
            ("1.2.3.4:8_0", "port is"),
            ("1.2.3.4:٨٠", "port is"),
            ("1.2.3.4:80\n", "port is"),
            ("1.2.3.4:0x50", "port is"),
            ("1.2.3.4:000080", "port is"),
            ("1.2.3:80", "no IPv4"),
            ("1.2.3.4.5:80", "no IPv4"),
            ("1.2.3.256:80", "no IPv4"),
            ("1.2.3.04:80", "no IPv4"),
            ("127.1:80", "no IPv4"),
            ("0x7f.1:80", "no IPv4"),
            ("2130706433:80", "no IPv4"),
            ("0x7f000001:80", "no IPv4"),
            ("::1:80", "brackets"),
            ("fe80::1:80", "brackets"),
            ("[::1]", "ends with"),
            ("[::1", "ends with"),
            ("[::1]80", "ends with"),
            ("[]:80", "ipv6|IPv6|At least|address"),
            ("[1.2.3.4]:80", "no address"),
            ("[fe80::1%eth0]:80", "zones"),
            ("ho st:80", "no host name"),
            ("-a:80", "no host name"),
            ("a..b:80", "no host name"),
            ("a" * 64 + ":80", "no host name"),
            (".".join(["a" * 60] * 5) + ":80", "no host name"),
            ("höst:80", "no host name"),
            ("http://a:80", "brackets"),
            ("unix:", "absolute"),
            ("unix:sock", "absolute"),
            ("unix:@abstract", "absolute"),
            ("unix:/a\0b", "NUL"),
            ("unix:/\ud800", "encoded"),
            (LONGEST + "p", "108 bytes, more than 107"),
            ("unix:/" + "ü" * 54, "bytes"),
        ],
    )
    def test_refusals_say_why_and_what_is_allowed(self, text: str, reason: str) -> None:
        with pytest.raises(AddressError, match=reason) as caught:
            parse_address(text)
        assert "allowed: 1.2.3.4:80" in str(caught.value)
        assert len(str(caught.value)) < 500

    @pytest.mark.parametrize("wrong", [None, 80, b"1.2.3.4:80", ("1.2.3.4", 80)])
    def test_only_text(self, wrong: object) -> None:
        with pytest.raises(TypeError, match="allowed: a str"):
            parse_address(wrong)

    def test_local_is_this_machine(self) -> None:
        def local(text: str) -> bool:
            return parse_address(text).is_local

        assert local("127.0.0.2:1")
        assert local("[::1]:1")
        assert local("unix:/a")
        assert not local("localhost:1")
        assert not local("128.0.0.1:1")
        assert not local("[::2]:1")

    def test_is_plain_data(self) -> None:
        address = Address(kind="unix", host="/a", port=0, text="unix:/a")
        assert address == parse_address("unix:/a")


class TestHealthCheck:
    def test_defaults(self) -> None:
        assert ChannelOptions().health_check is None
        assert HealthCheck() == HealthCheck(interval=3.0, probe=None)
        assert type(HealthCheck(interval=3).interval) is float
        with pytest.raises(dataclasses.FrozenInstanceError):
            HealthCheck().interval = 1.0  # type: ignore[misc]

    @pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, 1e10])
    def test_intervals_that_are_none(self, value: float) -> None:
        with pytest.raises(OptionError, match="HealthCheck.interval is .*seconds"):
            HealthCheck(interval=value)

    @pytest.mark.parametrize("value", ["3", None, True])
    def test_intervals_of_another_kind(self, value: Any) -> None:
        with pytest.raises(TypeError, match="HealthCheck.interval is .*seconds"):
            HealthCheck(interval=value)

    def test_probes(self) -> None:
        info = MethodInfo(service="s", name="m", request=str, response=str)
        assert HealthCheck(probe=info).probe is info
        for wrong in ("example.EchoService/Echo", 3, MethodInfo):
            with pytest.raises(TypeError, match="HealthCheck.probe is .*MethodInfo"):
                HealthCheck(probe=wrong)  # type: ignore[arg-type]

    def test_a_message_needs_a_probe(self) -> None:
        with pytest.raises(TypeError, match="HealthCheck.request is"):
            HealthCheck(request="hello")

    def test_a_channel_takes_nothing_else(self) -> None:
        for wrong in (3.0, True, HealthCheck):
            with pytest.raises(TypeError, match="ChannelOptions.health_check is"):
                ChannelOptions(health_check=wrong)  # type: ignore[arg-type]


class TestAddresses:
    def test_a_list(self) -> None:
        found = parse_addresses("1.2.3.4:80, [::1]:81,host:82,unix:/a")
        assert [a.kind for a in found] == ["ipv4", "ipv6", "name", "unix"]
        assert parse_addresses("1.2.3.4:80") == (parse_address("1.2.3.4:80"),)
        many = ",".join(["h:1"] * MAX_ADDRESSES)
        assert len(parse_addresses(many)) == MAX_ADDRESSES

    def test_what_is_none(self) -> None:
        many = ",".join(["h:1"] * (MAX_ADDRESSES + 1))
        for wrong in ("", ",", "h:1,", ",h:1", "h:1,,h:2", many):
            with pytest.raises(AddressError, match="allowed"):
                parse_addresses(wrong)
        with pytest.raises(TypeError, match="allowed"):
            parse_addresses(b"h:1")
