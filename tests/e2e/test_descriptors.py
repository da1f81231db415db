"""Descriptors: what happens when there are none left, and who inherits them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from generated import WHERE
from harness import SLOW

PRELUDE = """
import os, resource, socket, sys, time
from generated import echo_pb2, echo_tw
from harness import *
from tidewire import metrics

REQUEST = echo_pb2.EchoRequest(message="hello")
FACE = {"blocking": BlockingFace, "asyncio": AsyncFace}[sys.argv[1]]()
SERVE = Serving(sys.argv[2])

def counted(name):
    snapshot = metrics.read_core()
    [row] = [row for row in snapshot.rows if row.name == name]
    return snapshot.cells[row.cell]
"""

# os._exit: what a script leaves open is another test's matter.
FINISH = """
sys.stdout.flush()
os._exit(0)
"""


def run(script: str, *arguments: str) -> str:
    """The script's output, from a process of its own."""
    paths = [str(Path(__file__).parents[1]), str(WHERE)]
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + script + FINISH, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=50 * SLOW,
    )
    print(done.stderr)  # what it measured
    assert done.returncode == 0, done.stderr
    return done.stdout


EXHAUSTED = """
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
server = SERVE()
client = FACE.client(echo_tw, FACE.channel(server.address))
assert FACE.call(client, "echo", REQUEST, timeout=10).message == "hello"

def rate():
    began = time.monotonic()
    for _ in range(500):
        assert FACE.call(client, "echo", REQUEST, timeout=10).message == "hello"
    return 500 / (time.monotonic() - began)

rate()
usual = rate()
host, port = server.address.rsplit(":", 1)
newcomers = [socket.socket() for _ in range(5)]
taken = []
try:
    while True:
        taken.append(os.dup(0))
except OSError:
    pass
for newcomer in newcomers:
    newcomer.settimeout(30 * SLOW)
    newcomer.connect((host, int(port)))  # the kernel keeps it in the queue
    newcomer.sendall(frame(ECHO_META, field(1, b"hello")))
pauses = "tidewire_accept_pauses"
eventually(lambda: counted(pauses) > 0, "accepting pauses")
exhausted = rate()
assert server.connections == 1
# Ever later: 10, 20, 40 ... 640 ms, then a second.
eventually(lambda: counted(pauses) >= 8, "it was tried again", 30 * SLOW)
cpu, began, before = time.process_time(), time.monotonic(), counted(pauses)
eventually(lambda: counted(pauses) > before, "and again", 30 * SLOW)
cpu, wall = time.process_time() - cpu, time.monotonic() - began
for fd in taken:
    os.close(fd)
with watching() as watch:
    for newcomer in newcomers:
        stream = newcomer.makefile("rb")
        assert read_frame(stream)[1] == field(1, b"hello")
print(f"calls went on at {exhausted / usual:.0%} of their rate; {cpu / wall:.1%} CPU,"
      f" retries {wall:.2f} s apart; resumed after {watch}", file=sys.stderr)
assert watch.undisturbed < 1.5, watch
assert cpu < 0.2 * wall, (cpu, wall)  # 0.02 is what is promised
print("served", server.connections, counted("tidewire_refused_connections"))
"""


@pytest.mark.parametrize("kind", ["def", "async"])
def test_r4_out_of_descriptors_calls_go_on_and_accepting_resumes(face, kind):
    """R4: existing connections are served meanwhile, newcomers within 1.5 s
    afterwards; what it measures is printed (pytest -rP)."""
    assert run(EXHAUSTED, face.name, kind) == "served 6 0\n"


SHARE = """
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
server = SERVE(admin="127.0.0.1:0")
client = FACE.client(echo_tw, FACE.channel(server.address))
assert FACE.call(client, "echo", REQUEST, timeout=10).message == "hello"
kept = [connect(server) for _ in range(15)]
eventually(lambda: server.connections == 16)
newcomer = connect(server)
newcomer.settimeout(30 * SLOW)
assert newcomer.recv(1) == b""
assert FACE.call(client, "echo", REQUEST, timeout=10).message == "hello"
host, port = server.admin_address.rsplit(":", 1)
admin = socket.create_connection((host, int(port)))
admin.sendall(b"GET /health HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
assert b" 200 " in admin.recv(100)
print("refused", counted("tidewire_refused_connections"))
"""


def test_r3_newcomers_over_the_descriptor_share_are_closed(face):
    """R3: 80 % of 100 descriptors less 64 are 16; the admin still gets in."""
    assert run(SHARE, face.name, "def") == "refused 1\n"


HELD = """
import subprocess, threading

before = set(os.listdir("/proc/self/fd"))
def links():
    for name in os.listdir("/proc/self/fd"):
        try:
            if name not in before:
                yield int(name), os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            pass

where = sys.argv[3]
listener = socket.create_server(("127.0.0.1", 0))
server = SERVE(
    listen=["127.0.0.1:0", f"unix:{where}", f"fd:{listener.fileno()}"],
    admin="127.0.0.1:0",
)
for address in server.addresses:
    client = FACE.client(echo_tw, FACE.channel(address))
    assert FACE.start(client, "echo", REQUEST, timeout=10).result(10).message
    assert FACE.call(client, "echo", REQUEST, timeout=10).message
host, port = server.admin_address.rsplit(":", 1)
admin = socket.create_connection((host, int(port)))
admin.sendall(b"GET /health HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
assert b" 200 " in admin.recv(100)
held = dict(links())
assert len(held) >= 12, held
for fd, target in held.items():
    info = open(f"/proc/self/fdinfo/{fd}").read()
    flags = int(info.split("flags:")[1].split()[0], 8)
    assert flags & os.O_CLOEXEC, (fd, target)
listing = "import os; print(*(os.readlink(f'/proc/self/fd/{n}')" \\
    " for n in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{n}')))"
child = subprocess.run(
    [sys.executable, "-c", listing], close_fds=False, capture_output=True, text=True
)
inherited = set(child.stdout.split())
ours = {target for target in held.values() if "socket" in target}
assert len(ours) >= 10, ours
assert child.stdout and not inherited & ours, inherited & ours
assert not any("eventpoll" in target for target in inherited)
print("clean")
"""


@pytest.mark.parametrize("kind", ["def", "async", "on-loop"])
def test_p9_all_descriptors_are_close_on_exec(face, kind, tmp_path):
    """P9: of servers, channels, the admin and inboxes; a child that closes
    nothing inherits none of them."""
    assert run(HELD, face.name, kind, str(tmp_path / "s")) == "clean\n"
