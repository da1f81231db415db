"""The protoc plugin: a CodeGeneratorRequest on stdin, its response on stdout."""

from __future__ import annotations

import sys

from google.protobuf import descriptor_pb2
from google.protobuf.compiler import plugin_pb2
from google.protobuf.message import DecodeError

from . import RUNTIME, __version__, model, render

__all__ = ["main", "respond"]

_Response = plugin_pb2.CodeGeneratorResponse


def main() -> int:
    """Run the plugin; what is wrong with the input goes to protoc as its error."""
    try:
        request = plugin_pb2.CodeGeneratorRequest.FromString(sys.stdin.buffer.read())
    except DecodeError as error:
        print(
            f"protoc-gen-tidewire: stdin holds no CodeGeneratorRequest ({error}); "
            "protoc runs this program: protoc --tidewire_out=DIR ...",
            file=sys.stderr,
        )
        return 1
    sys.stdout.buffer.write(respond(request).SerializeToString(deterministic=True))
    return 0


def respond(
    request: plugin_pb2.CodeGeneratorRequest,
) -> plugin_pb2.CodeGeneratorResponse:
    """The generated modules, or the error that says why there are none."""
    response = _Response(
        supported_features=(
            _Response.FEATURE_PROTO3_OPTIONAL | _Response.FEATURE_SUPPORTS_EDITIONS
        ),
        minimum_edition=descriptor_pb2.EDITION_PROTO2,
        maximum_edition=_newest_edition(),
    )
    if request.parameter:
        response.error = f"unknown option {request.parameter!r}: there are none"
        return response
    try:
        files = model.load(request)
    except model.Refused as refused:
        response.error = str(refused)
        return response
    for file in files:
        if file.services:
            response.file.add(
                name=file.output,
                content=render.module(file, version=__version__, runtime=RUNTIME),
            )
    return response


def _newest_edition() -> int:
    # Editions change what fields mean, never services and message names, which are
    # all this plugin reads: whatever edition protobuf knows is fine. Test editions
    # and EDITION_UNSTABLE carry no year.
    return max(
        number
        for name, number in descriptor_pb2.Edition.items()
        if name.removeprefix("EDITION_").isdecimal()
    )


if __name__ == "__main__":
    sys.exit(main())
