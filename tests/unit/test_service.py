"""What generated code is made of: method infos, clients, the version check."""

import dataclasses

import pytest
import tidewire as tw
from generated import echo_pb2, echo_tw


def test_info_of_a_generated_method() -> None:
    [info] = echo_tw.EchoService.__tidewire_methods__.values()
    assert info.full_name == "example.EchoService/Echo"
    assert (info.service, info.name) == ("example.EchoService", "Echo")
    assert (info.request, info.response) == (
        echo_pb2.EchoRequest,
        echo_pb2.EchoResponse,
    )
    assert info.idempotency is tw.Idempotency.UNKNOWN


def test_infos_are_values() -> None:
    info = tw.MethodInfo(service="s", name="n", request=bytes, response=bytes)
    same = tw.MethodInfo(service="s", name="n", request=bytes, response=bytes)
    assert info == same
    assert hash(info) == hash(same)
    with pytest.raises(dataclasses.FrozenInstanceError):
        info.name = "other"
    with pytest.raises(TypeError):
        tw.MethodInfo("s", "n", bytes, bytes)


@pytest.mark.parametrize("version", ["0.0", "0.1"])
def test_runtime_that_is_new_enough(version: str) -> None:
    tw.require_runtime(version)


@pytest.mark.parametrize("version", ["0.2", "0.100", "1.0", "1.1", "2.0"])
def test_runtime_that_is_too_old(version: str) -> None:
    with pytest.raises(ImportError, match=f"needs tidewire {version}, this is"):
        tw.require_runtime(version)


@pytest.mark.parametrize("wrong", [None, "127.0.0.1:80", object()])
def test_client_of_no_channel(wrong) -> None:
    with pytest.raises(TypeError, match=r"channel is a .*allowed: tidewire.Channel"):
        echo_tw.EchoClient(wrong)
    with pytest.raises(TypeError, match=r"channel is a .*tidewire.AsyncChannel"):
        echo_tw.AsyncEchoClient(wrong)


def test_faces_are_not_mixed() -> None:
    with tw.Channel("127.0.0.1:1") as channel, pytest.raises(TypeError):
        echo_tw.AsyncEchoClient(channel)
    other = tw.AsyncChannel("127.0.0.1:1")
    with pytest.raises(TypeError):
        echo_tw.EchoClient(other)
    other._close()


def test_methods_are_attributes_made_once() -> None:
    with tw.Channel("127.0.0.1:1") as channel:
        client = echo_tw.EchoClient(channel)
        assert isinstance(client.echo, tw.UnaryMethod)
        assert client.echo is client.echo
        assert client.echo.info.full_name == "example.EchoService/Echo"


def test_a_client_keeps_its_channel_open() -> None:
    """Only the client is kept, and the channel warns when both are gone."""
    import gc

    client = echo_tw.EchoClient(tw.Channel("127.0.0.1:1"))
    gc.collect()
    with pytest.raises(tw.Unavailable):
        client.echo(echo_pb2.EchoRequest(message="x"), timeout=1)
    client.echo._channel.close()


def test_the_default_method_is_unimplemented() -> None:
    with pytest.raises(tw.Unimplemented, match="example.EchoService/Echo"):
        echo_tw.EchoService().echo(None, None)


def test_too_long_names_are_refused() -> None:
    info = tw.MethodInfo(service="s" * 600, name="n", request=bytes, response=bytes)
    with (
        tw.Channel("127.0.0.1:1") as channel,
        pytest.raises(OSError, match="cannot be called"),
    ):
        channel.unary(info)
