"""Servers that enter themselves in a real etcd: when they do, what becomes of the
entry when either of the two is away, and who goes off the list when."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
import tidewire as tw
from generated import WHERE, echo_pb2, echo_tw
from harness import SLOW, eventually, within
from tools.cable import Cable
from tools.workers import TOOLS, Workers

PATIENCE = 20 * SLOW
REQUEST = echo_pb2.EchoRequest(message="hello")
TTL = 2


def url_of(etcd, prefix):
    return f"etcd://{etcd.endpoint}{prefix}"


def entered(etcd, prefix):
    """The addresses, one for each key."""
    return [json.loads(value)["address"] for value in etcd.get(f"{prefix}/")]


def until_entered(etcd, prefix, *addresses):
    eventually(lambda: entered(etcd, prefix) == list(addresses), within=PATIENCE)


def test_a_server_is_there_while_it_serves(face, serve, etcd, prefix):
    """Both faces find it; its tag is what it said."""
    url = url_of(etcd, prefix)
    server = serve(register=tw.Register(url=url, tag="5", ttl=TTL))
    client = face.client(echo_tw, face.channel(url, timeout=30.0))
    # Its list may be empty at first, and then follows.
    eventually(lambda: answers(face, client), within=PATIENCE)
    [entry] = etcd.get(f"{prefix}/")
    assert json.loads(entry) == {"address": server.address, "tag": "5"}
    serve.stop(server)
    assert entered(etcd, prefix) == []


def answers(face, client):
    try:
        return face.call(client, "echo", REQUEST).message == "hello"
    except tw.Unavailable:
        return False


def test_it_goes_off_the_list_before_it_drains(face, serve, etcd, prefix, gate):
    """A call is under way, and new ones are still served, as a lame duck."""
    register = tw.Register(url=url_of(etcd, prefix), ttl=TTL)
    server = serve(gate=gate, register=register, lame_duck=30.0, drain=30.0)
    until_entered(etcd, prefix, server.address)
    channel = face.channel(server.address, timeout=60.0)
    client = face.client(echo_tw, channel)
    held = face.start(client, "echo", REQUEST)
    gate.until_entered()
    stopping = threading.Thread(target=serve.stop, args=[server])
    stopping.start()
    try:
        until_entered(etcd, prefix)
        assert stopping.is_alive()
        assert not held.done()
        gate.open()
        assert held.result(10).message == "hello"
        assert face.call(client, "echo", REQUEST).message == "hello"
        face.close_channel(channel)
    finally:
        gate.open()
        stopping.join(PATIENCE)


def test_the_entry_lives_as_long_as_the_server_says_so(serve_def, etcd, prefix):
    """For twice its time to live: it is the same one."""
    with Cable(etcd.endpoint) as cable:
        register = tw.Register(url=f"etcd://{cable.address}{prefix}", ttl=1)
        server = serve_def(register=register)
        until_entered(etcd, prefix, server.address)
        before = etcd.pairs(f"{prefix}/")
        # It says so three times in each.
        eventually(lambda: cable.accepted >= 2 + 2 * 3, within=PATIENCE)
        assert etcd.pairs(f"{prefix}/") == before


def test_the_entry_of_a_killed_server_ends(tmp_path, etcd, prefix):
    """By itself: nobody is left to take it off."""
    with Workers(tmp_path, REGISTER=url_of(etcd, prefix), TTL="1") as server:
        eventually(lambda: len(entered(etcd, prefix)) == 2, within=PATIENCE)
        os.kill(server.process.pid, signal.SIGSTOP)
        for pid in server.pids():
            os.kill(pid, signal.SIGKILL)
        until_entered(etcd, prefix)


def test_a_lease_that_was_lost_is_had_anew(serve_def, etcd, prefix):
    """Under the same key, so that the server is there once."""
    server = serve_def(register=tw.Register(url=url_of(etcd, prefix), ttl=TTL))
    until_entered(etcd, prefix, server.address)
    [before] = etcd.pairs(f"{prefix}/")
    etcd.revoke_leases(f"{prefix}/")
    assert entered(etcd, prefix) == []
    until_entered(etcd, prefix, server.address)
    [after] = etcd.pairs(f"{prefix}/")
    assert after["key"] == before["key"]
    assert after["lease"] != before["lease"]


def test_etcd_comes_later_than_the_server(face, serve_def, etcd, prefix):
    """And goes, and comes back without the lease: calls notice nothing."""
    with Cable(etcd.endpoint) as cable:
        cable.be("cut")
        register = tw.Register(url=f"etcd://{cable.address}{prefix}", ttl=1)
        with within(1.0 * SLOW):
            server = serve_def(register=register)
        client = face.client(echo_tw, face.channel(server.address, timeout=30.0))
        assert face.call(client, "echo", REQUEST).message == "hello"
        eventually(lambda: cable.accepted >= 2, within=PATIENCE)
        cable.be("whole")
        until_entered(etcd, prefix, server.address)
        cable.be("cut")
        until_entered(etcd, prefix)
        assert face.call(client, "echo", REQUEST).message == "hello"
        cable.be("whole")
        until_entered(etcd, prefix, server.address)


def test_a_server_stops_though_etcd_never_answers(
    serve, etcd, prefix, caplog, monkeypatch
):
    """In little more than the time it gives etcd; the entry ends by itself."""
    monkeypatch.setattr("tidewire.server._REVOKING", 0.2)
    monkeypatch.setattr("tidewire.naming.etcd_client._TIMEOUT", 0.5 * SLOW)
    with Cable(etcd.endpoint) as cable, caplog.at_level(logging.WARNING):
        register = tw.Register(url=f"etcd://{cable.address}{prefix}", ttl=1)
        server = serve(register=register)
        until_entered(etcd, prefix, server.address)
        cable.be("mute")
        with within(1.0 * SLOW):
            serve.stop(server)
        assert "no answer in 0.2 s" in caplog.text
        until_entered(etcd, prefix)


def test_etcd_is_killed_and_started_again(serve_def, etcd, prefix):
    server = serve_def(register=tw.Register(url=url_of(etcd, prefix), ttl=TTL))
    until_entered(etcd, prefix, server.address)
    etcd.kill()
    etcd.start()
    etcd.revoke_leases(f"{prefix}/")
    until_entered(etcd, prefix, server.address)


# ---- what is registered


def test_every_address_is_none_that_could_be_called(serve, etcd, prefix):
    """The server says so when it starts, and does not serve."""
    url = url_of(etcd, prefix)
    for listen in ("0.0.0.0:0", "[::]:0"):
        if listen.startswith("[") and not socket.has_ipv6:
            continue
        with pytest.raises(tw.AddressError, match=r'allowed: Register\(address="host'):
            serve(listen=listen, register=tw.Register(url=url))
    assert entered(etcd, prefix) == []


def test_the_address_that_is_given(serve_def, etcd, prefix):
    """Port 0 is the port that was bound."""
    url = url_of(etcd, prefix)
    register = tw.Register(url=url, address="shop-1.example:0", ttl=TTL)
    server = serve_def(listen="0.0.0.0:0", register=register)
    until_entered(etcd, prefix, f"shop-1.example:{server.address.split(':')[1]}")
    serve_def.stop(server)
    register = tw.Register(url=url, address="[2001:DB8::1]:8000", ttl=TTL)
    serve_def(listen="0.0.0.0:0", register=register)
    until_entered(etcd, prefix, "[2001:db8::1]:8000")


# ---- workers


def test_a_reload_never_leaves_the_address_unregistered(tmp_path, etcd, prefix):
    """Each worker has a key for the same address; a successor's is there before
    its predecessor's goes.  Every revision of the store is looked at."""
    with Workers(tmp_path, workers=2, REGISTER=url_of(etcd, prefix)) as server:
        # They are ready, so that they are registered.
        assert entered(etcd, prefix) == [server.address] * 2
        before = {pair["key"] for pair in etcd.pairs(f"{prefix}/")}
        revision = max(int(pair["mod_revision"]) for pair in etcd.pairs(f"{prefix}/"))
        for times in range(1, 3):
            server.process.send_signal(signal.SIGHUP)
            server.until("reload done", times)
        assert entered(etcd, prefix) == [server.address] * 2
        after = {pair["key"] for pair in etcd.pairs(f"{prefix}/")}
        assert not before & after
        last = max(int(pair["mod_revision"]) for pair in etcd.pairs(f"{prefix}/"))
        counts = [
            len(etcd.pairs(f"{prefix}/", revision=str(one)))
            for one in range(revision, last + 1)
        ]
        print(f"keys at {len(counts)} revisions: {counts}")
        assert set(counts) == {2, 3}
        assert server.stop() == 0
    assert entered(etcd, prefix) == []


def test_a_killed_worker_is_followed_by_one_that_is_registered(tmp_path, etcd, prefix):
    with Workers(tmp_path, workers=2, REGISTER=url_of(etcd, prefix)) as server:
        before = {pair["key"] for pair in etcd.pairs(f"{prefix}/")}
        os.kill(server.pids()[0], signal.SIGKILL)
        server.until("is ready", 3)

        def two_others():
            keys = {pair["key"] for pair in etcd.pairs(f"{prefix}/")}
            return len(keys) == 2 and len(keys & before) == 1

        eventually(two_others, within=PATIENCE)
        assert server.stop() == 0


def test_workers_start_though_etcd_is_away(tmp_path, etcd, prefix):
    """They serve at once, and are ready after the time of an entry."""
    with Cable(etcd.endpoint) as cable:
        cable.be("cut")
        url = f"etcd://{cable.address}{prefix}"
        with Workers(tmp_path, REGISTER=url, TTL="1") as server:
            cable.be("whole")
            until_entered(etcd, prefix, server.address, server.address)
            assert server.stop() == 0
    assert entered(etcd, prefix) == []


def test_the_command_line_says_where(tmp_path, etcd, prefix):
    command = [
        *(sys.executable, "-m", "tidewire.cli", "serve", "workers:make"),
        *("--workers", "1", "--listen", "0.0.0.0:0"),
        *("--register", url_of(etcd, prefix), "--advertise", "127.0.0.1:0"),
    ]
    with Workers(tmp_path, command=command) as server:
        port = server.address.split(":")[1]
        assert entered(etcd, prefix) == [f"127.0.0.1:{port}"]
        assert server.stop() == 0
    assert entered(etcd, prefix) == []


def test_a_command_line_that_does_not_say_where():
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tidewire.cli", "serve", "workers:make"),
            *("--advertise", "127.0.0.1:0"),
        ],
        env={
            **os.environ,
            "PYTHONPATH": f"{WHERE}:{TOOLS}",
            "JOURNAL": os.devnull,
            "LISTEN": "127.0.0.1:0",
            "WORKERS": "1",
        },
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert "127.0.0.1:0 is to be registered, and no url says where" in done.stderr
