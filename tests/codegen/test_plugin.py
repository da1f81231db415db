"""protoc-gen-tidewire by itself: the protocol with protoc, names, refusals."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib

import pytest
import tidewire_gen
from codegen_cases import ROOT
from google.protobuf import descriptor_pb2
from google.protobuf.compiler import plugin_pb2
from tidewire_gen import model
from tidewire_gen.__main__ import respond


def request(*methods: str, message: str = "M") -> plugin_pb2.CodeGeneratorRequest:
    """A request for x.proto with service x.S; it has no source_code_info."""
    file = descriptor_pb2.FileDescriptorProto(name="x.proto", package="x")
    file.message_type.add(name=message)
    service = file.service.add(name="S")
    for name in methods:
        service.method.add(
            name=name, input_type=f".x.{message}", output_type=f".x.{message}"
        )
    return plugin_pb2.CodeGeneratorRequest(
        file_to_generate=["x.proto"], proto_file=[file]
    )


def run(stdin: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "tidewire_gen"],
        input=stdin,
        env={**os.environ, "PYTHONPATH": str(ROOT / "codegen")},
        capture_output=True,
        check=False,
    )


def test_stdout_holds_the_response_and_nothing_else() -> None:
    done = run(request("Get").SerializeToString())
    assert (done.returncode, done.stderr) == (0, b"")
    response = plugin_pb2.CodeGeneratorResponse.FromString(done.stdout)
    assert response == respond(request("Get"))
    assert [file.name for file in response.file] == ["x_tw.py"]


def test_other_input_is_an_error_of_the_program() -> None:
    done = run(b"\xff\xff")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"stdin holds no CodeGeneratorRequest" in done.stderr


def test_imports_protobuf_only() -> None:
    program = (
        "import sys, tidewire_gen.__main__\n"
        "found = {name.partition('.')[0] for name in sys.modules}\n"
        "print(*found - {*sys.stdlib_module_names, '__main__'})\n"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(["codegen", *sys.path])},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(done.stdout.split()) == {"google", "tidewire_gen"}


def test_supports_optional_and_every_edition_with_a_year() -> None:
    response = respond(request("Get"))
    features = plugin_pb2.CodeGeneratorResponse
    assert response.supported_features == (
        features.FEATURE_PROTO3_OPTIONAL | features.FEATURE_SUPPORTS_EDITIONS
    )
    assert response.minimum_edition == descriptor_pb2.EDITION_PROTO2
    editions = descriptor_pb2.Edition.items()
    newest = [name for name, number in editions if number == response.maximum_edition]
    assert response.maximum_edition >= descriptor_pb2.EDITION_2023
    assert newest[0].startswith("EDITION_20")


def test_options_are_refused() -> None:
    asked = request("Get")
    asked.parameter = "speed=high"
    assert respond(asked).error == "unknown option 'speed=high': there are none"


def test_problems_name_the_file_when_there_are_no_lines() -> None:
    asked = request("Get", "Watch")
    asked.proto_file[0].service[0].method[1].server_streaming = True
    response = respond(asked)
    assert response.error.startswith("x.proto: x.S.Watch: streaming methods are not")
    assert not response.file


def test_a_message_that_python_cannot_name_is_refused() -> None:
    error = respond(request("Get", message="None")).error
    assert error.startswith("x.proto: x.S.Get: Python code cannot name 'x.None'")
    assert respond(request(message="None")).error == ""


@pytest.mark.parametrize(
    ("name", "python_name"),
    [
        ("Echo", "echo"),
        ("GetCart", "get_cart"),
        ("GetHTTPInfo", "get_http_info"),
        ("HTTPInfo", "http_info"),
        ("getX", "get_x"),
        ("Get_Cart", "get_cart"),
        ("ListURLs", "list_urls"),
        ("ListURLsByID", "list_urls_by_id"),
        ("GetAsset", "get_asset"),
        ("IsAsset", "is_asset"),
        ("V2", "v2"),
        ("GetV2Info", "get_v2_info"),
        ("SHA256Sum", "sha256_sum"),
        ("_2", "rpc_2"),
        ("__", "rpc_"),
        ("Import", "import_"),
        ("Print", "print"),
        ("Type", "type"),
        ("x_pb2", "x_pb2_"),
    ],
)
def test_rpcs_become_methods(name: str, python_name: str) -> None:
    assert model.method_name(name) == python_name


@pytest.mark.parametrize(
    ("source", "target", "package"),
    [
        ("", "", "."),
        ("", "a.b", ".a.b"),
        ("a", "", ".."),
        ("a.b", "a.b", "."),
        ("a.b", "a.b.c", ".c"),
        ("a.b", "a", ".."),
        ("a.b", "a.c", "..c"),
        ("a.b", "c.d", "...c.d"),
    ],
)
def test_relative_package(source: str, target: str, package: str) -> None:
    assert model.relative_package(source, target) == package


def test_attributes_of_the_base_classes_are_reserved() -> None:
    tw = pytest.importorskip("tidewire")
    if not hasattr(tw, "AsyncClient"):
        pytest.skip("this tidewire has no clients yet")
    public = {
        name
        for base in (tw.Service, tw.Client, tw.AsyncClient)
        for name in (*dir(base), *getattr(base, "__slots__", ()))
        if not name.startswith("_")
    }
    assert public <= model.RESERVED


def test_versions_agree_with_the_distribution() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert tidewire_gen.__version__ == project["version"]
    assert project["version"].startswith(f"{tidewire_gen.RUNTIME}.")
