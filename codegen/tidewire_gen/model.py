"""Descriptors to what a generated module says: names chosen, problems refused."""

from __future__ import annotations

import inspect
import keyword
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from google.protobuf import descriptor_pb2 as pb
from google.protobuf.compiler import plugin_pb2

__all__ = [
    "RESERVED",
    "WELL_KNOWN",
    "File",
    "Message",
    "Method",
    "Refused",
    "Service",
    "load",
    "method_name",
    "module_stem",
    "relative_package",
    "snake_case",
]

WELL_KNOWN = "google/protobuf/"
"""Files below this name come with the protobuf package, already generated."""

RESERVED = frozenset({"aclose", "channel", "close", "fork_safe", "options", "tw"})
"""Public attributes of the base classes, and the name generated modules use."""

# Numbers from descriptor.proto, as they occur in the paths of source_code_info.
_FILE_SERVICE = 6
_SERVICE_METHOD = 2

_IDEMPOTENCY = {
    pb.MethodOptions.IDEMPOTENCY_UNKNOWN: "UNKNOWN",
    pb.MethodOptions.NO_SIDE_EFFECTS: "NO_SIDE_EFFECTS",
    pb.MethodOptions.IDEMPOTENT: "IDEMPOTENT",
}


class Refused(Exception):
    """The request asks for what cannot be generated; one line per problem."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A message type, as Python finds it."""

    module: str
    """The dotted module below the output directory, such as "shop.v1.cart_pb2"."""
    name: str
    """The name in that module, such as "Outer.Inner"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    name: str
    """As in the .proto: the name on the wire."""
    python_name: str
    request: Message
    response: Message
    idempotency: str
    """A member of tidewire.Idempotency."""
    comment: str
    deprecated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    full_name: str
    """Package and name: the name on the wire."""
    comment: str
    deprecated: bool
    methods: tuple[Method, ...]

    @property
    def stem(self) -> str:
        """The name without the suffix "Service": clients are named after it."""
        name = self.full_name.rpartition(".")[2]
        return name.removesuffix("Service") or name

    @property
    def class_names(self) -> tuple[str, str, str]:
        """The names of the base class, the client and the asyncio client."""
        name = self.full_name.rpartition(".")[2]
        base = name if name.endswith("Service") else f"{name}Service"
        return base, f"{self.stem}Client", f"Async{self.stem}Client"


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    path: str
    """As given to protoc, such as "shop/v1/cart.proto"."""
    services: tuple[Service, ...]

    @property
    def package(self) -> str:
        """The Python package of the generated module, "" at the top."""
        return module_stem(self.path).rpartition(".")[0]

    @property
    def output(self) -> str:
        """The path of the generated module below the output directory."""
        return module_stem(self.path).replace(".", "/") + "_tw.py"


def load(request: plugin_pb2.CodeGeneratorRequest) -> list[File]:
    """The files to generate, in the order of the request, or Refused."""
    files = {file.name: file for file in request.proto_file}
    messages = {
        f".{name}": Message(module=f"{module_stem(file.name)}_pb2", name=python_name)
        for file in request.proto_file
        for name, python_name in _messages(file)
    }
    loaders = [_Loader(files[name], messages) for name in request.file_to_generate]
    loaded = [loader.file() for loader in loaders]
    problems = [problem for loader in loaders for problem in loader.problems]
    if problems:
        raise Refused("\n".join(problems))
    return loaded


class _Loader:
    """Reads one file; collects every problem instead of stopping at the first."""

    def __init__(
        self, proto: pb.FileDescriptorProto, messages: dict[str, Message]
    ) -> None:
        self.problems: list[str] = []
        self._proto = proto
        self._messages = messages
        self._locations = {
            tuple(location.path): location
            for location in proto.source_code_info.location
        }

    def file(self) -> File:
        services = tuple(
            self._service(service, (_FILE_SERVICE, index))
            for index, service in enumerate(self._proto.service)
        )
        self._refuse_class_clashes(services)
        return File(path=self._proto.name, services=services)

    def _service(
        self, proto: pb.ServiceDescriptorProto, path: tuple[int, ...]
    ) -> Service:
        package = self._proto.package
        full_name = f"{package}.{proto.name}" if package else proto.name
        methods: list[Method] = []
        taken: dict[str, str] = {}
        for index, method in enumerate(proto.method):
            method_path = (*path, _SERVICE_METHOD, index)
            loaded = self._method(method, full_name, method_path)
            methods.append(loaded)
            if loaded.python_name in taken:
                self._refuse(
                    method_path,
                    f"{full_name}.{method.name}",
                    f"becomes the Python method {loaded.python_name!r}, which "
                    f"{taken[loaded.python_name]!r} has taken; rename one of them",
                )
            taken.setdefault(loaded.python_name, method.name)
        return Service(
            full_name=full_name,
            comment=self._comment(path),
            deprecated=proto.options.deprecated,
            methods=tuple(methods),
        )

    def _method(
        self, proto: pb.MethodDescriptorProto, service: str, path: tuple[int, ...]
    ) -> Method:
        where = f"{service}.{proto.name}"
        if proto.client_streaming or proto.server_streaming:
            self._refuse(
                path,
                where,
                "streaming methods are not supported; remove 'stream' and send the "
                "items in one message or page by page, or move the method to a "
                ".proto file that is not generated with tidewire",
            )
        return Method(
            name=proto.name,
            python_name=method_name(proto.name),
            request=self._message(proto.input_type, where, path),
            response=self._message(proto.output_type, where, path),
            idempotency=_IDEMPOTENCY[proto.options.idempotency_level],
            comment=self._comment(path),
            deprecated=proto.options.deprecated,
        )

    def _message(self, name: str, where: str, path: tuple[int, ...]) -> Message:
        message = self._messages[name]
        for part in f"{message.module}.{message.name}".split("."):
            if keyword.iskeyword(part) or not part.isidentifier():
                self._refuse(
                    path,
                    where,
                    f"Python code cannot name {name[1:]!r}, which it would find as "
                    f"{message.name} in {message.module}: {part!r} is not a usable "
                    "name; rename that directory, file or message",
                )
        return message

    def _refuse_class_clashes(self, services: Iterable[Service]) -> None:
        taken: dict[str, Service] = {}
        for index, service in enumerate(services):
            for name in service.class_names:
                first = taken.setdefault(name, service)
                if first is not service:
                    self._refuse(
                        (_FILE_SERVICE, index),
                        service.full_name,
                        f"needs the Python class {name!r}, which {first.full_name} "
                        "has taken; rename one of them or move it to another file",
                    )
                    break

    def _refuse(self, path: tuple[int, ...], where: str, why: str) -> None:
        location = self._locations.get(path)
        line = f":{location.span[0] + 1}" if location else ""
        self.problems.append(f"{self._proto.name}{line}: {where}: {why}")

    def _comment(self, path: tuple[int, ...]) -> str:
        location = self._locations.get(path)
        if location is None:
            return ""
        return _clean(location.leading_comments or location.trailing_comments)


def method_name(name: str) -> str:
    """The Python method of an rpc: GetHTTPInfo gives get_http_info."""
    snake = snake_case(name)
    if not snake.isidentifier():
        snake = f"rpc_{snake}"
    # The annotations in a class body look names up in that body first, so a method
    # may not be called like the modules they mention.
    if keyword.iskeyword(snake) or snake in RESERVED or snake.endswith("_pb2"):
        snake += "_"
    return snake


def snake_case(name: str) -> str:
    """Words in small letters, without the leading underscores of a private name."""
    return _WORD_START.sub("_", name).lower().lstrip("_")


# Before a capital that follows a small letter or a digit, and before the last
# capital of a run when a word starts there, except for a plural: ListURLs, not UR_Ls.
_WORD_START = re.compile(
    r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z](?!s(?![a-z]))[a-z])"
)


def module_stem(path: str) -> str:
    """The dotted Python name of a .proto file, by the rule of protoc itself."""
    return path.removesuffix(".proto").replace("-", "_").replace("/", ".")


def relative_package(source: str, target: str) -> str:
    """How a module in package `source` writes package `target` after "from"."""
    here = source.split(".") if source else []
    there = target.split(".") if target else []
    shared = 0
    while shared < min(len(here), len(there)) and here[shared] == there[shared]:
        shared += 1
    return "." * (len(here) - shared + 1) + ".".join(there[shared:])


def _messages(file: pb.FileDescriptorProto) -> Iterator[tuple[str, str]]:
    """The full name and the Python name of each message, nested ones included."""
    prefix = f"{file.package}." if file.package else ""
    pending = [("", message) for message in file.message_type]
    while pending:
        outer, message = pending.pop()
        name = outer + message.name
        yield prefix + name, name
        pending.extend((f"{name}.", nested) for nested in message.nested_type)


def _clean(comment: str) -> str:
    # protoc leaves the second star of "/**". Characters that cannot be seen could make
    # a docstring that reads other than it runs.
    lines = comment.removeprefix("*").expandtabs(4).splitlines()
    visible = ["".join(filter(str.isprintable, line)).rstrip() for line in lines]
    return inspect.cleandoc("\n".join(visible).strip())
