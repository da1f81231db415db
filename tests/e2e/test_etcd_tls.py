"""etcd over TLS, both sides with certificates of a private authority."""

import shutil
import subprocess

import pytest
import tidewire as tw
from generated import echo_pb2, echo_tw
from harness import SLOW, eventually
from tools.etcd import Etcd, executable

PATIENCE = 20 * SLOW


def openssl(where, *arguments):
    subprocess.run(
        ["openssl", *arguments], cwd=where, check=True, capture_output=True, timeout=60
    )


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """ca.pem; for etcd and for us, signed by it, one.pem and one.key."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make certificates with")
    where = tmp_path_factory.mktemp("certificates")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl(
        where,
        *("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem"),
        *("-subj", "/CN=test authority", "-days", "2"),
    )
    openssl(
        where,
        *("req", *key, "-keyout", "one.key", "-out", "one.csr", "-subj", "/CN=one"),
    )
    (where / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    openssl(
        where,
        *("x509", "-req", "-in", "one.csr", "-CA", "ca.pem", "-CAkey", "ca.key"),
        *("-CAcreateserial", "-out", "one.pem", "-days", "2", "-extfile", "names"),
    )
    return where


@pytest.fixture(scope="module")
def tls_etcd(certificates, tmp_path_factory):
    program = executable()
    if program is None:
        pytest.skip("no etcd: .ci/prerequisites unpacks Debian's")
    with Etcd(
        program,
        tmp_path_factory.mktemp("etcd-tls"),
        *("--cert-file", str(certificates / "one.pem")),
        *("--key-file", str(certificates / "one.key")),
        *("--trusted-ca-file", str(certificates / "ca.pem"), "--client-cert-auth"),
        tls=True,
    ) as one:
        yield one


def test_registered_and_found(face, serve_def, tls_etcd, certificates, prefix):
    where = certificates
    url = (
        f"etcds://{tls_etcd.endpoint}{prefix}?ca={where}/ca.pem"
        f"&cert={where}/one.pem&key={where}/one.key"
    )
    server = serve_def(register=tw.Register(url=url))
    eventually(lambda: server.registered, within=PATIENCE)
    client = face.client(echo_tw, face.channel(url, timeout=30.0))
    request = echo_pb2.EchoRequest(message="hello")
    assert face.call(client, "echo", request).message == "hello"


@pytest.mark.parametrize("missing", ["our certificate", "the authority"])
def test_who_is_not_trusted(serve_def, tls_etcd, certificates, prefix, caplog, missing):
    """The log says why; the server serves."""
    query = f"?ca={certificates}/ca.pem" if missing == "our certificate" else ""
    url = f"etcds://{tls_etcd.endpoint}{prefix}{query}"
    server = serve_def(register=tw.Register(url=url))
    # etcd's own words differ with its version.
    reason = f"{tls_etcd.endpoint}: " if query else "certificate verify failed"
    eventually(lambda: reason in caplog.text, within=PATIENCE)
    assert not server.registered
