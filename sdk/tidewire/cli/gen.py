"""tidewire gen: .proto files to an importable package of messages and services."""

from __future__ import annotations

import argparse
import importlib.util
import keyword
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from google.protobuf import descriptor_pb2
from tidewire_gen.model import WELL_KNOWN, module_stem

from . import tree
from .relative import relative_imports

__all__ = ["register", "run"]

# protoc writes Mapping without its types, which mypy --strict does not forgive.
_MYPY_COMMENT = '# mypy: disable-error-code="type-arg"\n'


class _GenError(Exception):
    exit_status = 1


class _UsageError(_GenError):
    exit_status = 2


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this command to the parser of `tidewire`."""
    parser = commands.add_parser(
        "gen",
        help="generate Python from .proto files",
        description="Generate a package from .proto files: their services, clients and "
        "messages, and the messages of what they import.",
    )
    add = parser.add_argument
    add("proto", nargs="+", metavar="PROTO", help="a .proto file below a -I directory")
    add(
        "-I",
        action="append",
        dest="roots",
        metavar="DIR",
        help="where imports are looked up; may be repeated (default: .)",
    )
    add("-o", dest="out", metavar="DIR", required=True, help="the package to write")
    add("-q", "--quiet", action="store_true", help="do not print what is written")
    add(
        "--check",
        action="store_true",
        help="write nothing; exit with 1 if the output is not up to date",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; 2 says that it was used wrongly, 1 any other failure."""
    out = Path(arguments.out)
    roots = arguments.roots or ["."]
    try:
        names = _proto_names(arguments.proto, [Path(root) for root in roots])
        if out.exists() and not out.is_dir():
            raise _UsageError(f"-o {out} is not a directory")
        files, unwanted = _generate(names, roots)
        changes = tree.changes(files, unwanted, out)
        if not arguments.check:
            tree.install(changes, out)
    except (_GenError, OSError) as error:
        print(f"tidewire gen: {error}", file=sys.stderr)
        return error.exit_status if isinstance(error, _GenError) else 1
    for name, text in changes.items():
        if arguments.quiet:
            break
        if arguments.check:
            print(tree.difference(out / name, text))
        else:
            print(out / name if text is not None else f"{out / name} (removed)")
    return 1 if arguments.check and changes else 0


# What to generate.


def _proto_names(protos: Iterable[str], roots: Sequence[Path]) -> list[str]:
    """The files as protoc and imports name them: relative to a root."""
    for root in roots:
        if not root.is_dir():
            raise _UsageError(f"-I {root} is not a directory")
    return list(dict.fromkeys(_proto_name(Path(proto), roots) for proto in protos))


def _proto_name(proto: Path, roots: Sequence[Path]) -> str:
    searched = f"the -I directories ({', '.join(map(str, roots))})"
    if proto.is_file():
        for root in roots:
            # Not resolve(): a link below a root counts where it is, as for protoc.
            path, top = os.path.abspath(proto), os.path.abspath(root)
            if os.path.commonpath([path, top]) == top:
                name = os.path.relpath(path, top)
                first = next(r / name for r in roots if (r / name).is_file())
                if not first.samefile(proto):
                    raise _UsageError(
                        f"{proto} is hidden by {first}: mind the -I order"
                    )
                return name
    if not proto.is_absolute() and any((root / proto).is_file() for root in roots):
        return os.path.normpath(proto)
    if proto.is_file():
        raise _UsageError(f"{proto} is not below any of {searched}")
    raise _UsageError(f"{proto}: no such file, nor in any of {searched}")


def _generate(
    names: Sequence[str], roots: Iterable[str]
) -> tuple[dict[str, str], list[str]]:
    """The files of the package by path, and paths that it does not have any more."""
    if importlib.util.find_spec("grpc_tools") is None:
        raise _GenError(
            "protoc comes with grpcio-tools, which is not installed: "
            "pip install 'tidewire[gen]'"
        )
    with tempfile.TemporaryDirectory(prefix="tidewire-gen-") as temporary:
        include = [f"-I{root}" for root in roots]
        written = Path(temporary, "written")
        written.mkdir()
        descriptors = Path(temporary, "descriptors")
        # Services of the named files only: those of others may well be served by
        # something else, and stream.
        warnings = _protoc(
            *include,
            f"--descriptor_set_out={descriptors}",
            "--include_imports",
            f"--plugin=protoc-gen-tidewire={_plugin(Path(temporary))}",
            f"--tidewire_out={written}",
            *names,
        )
        protos = _own_files(descriptors.read_bytes())
        _protoc(*include, f"--python_out={written}", f"--pyi_out={written}", *protos)
        sys.stderr.write(warnings)
        files = _package(written, {f"{module_stem(proto)}_pb2" for proto in protos})
        services = [f"{module_stem(name).replace('.', '/')}_tw.py" for name in names]
        return files, [name for name in services if name not in files]


def _own_files(descriptors: bytes) -> list[str]:
    """The named files and what they import, without what protobuf brings along."""
    files = descriptor_pb2.FileDescriptorSet.FromString(descriptors).file
    names = [file.name for file in files if not file.name.startswith(WELL_KNOWN)]
    for name in names:
        _require_importable(name)
    return names


def _require_importable(proto: str) -> None:
    for part in f"{module_stem(proto)}_pb2".split("."):
        if keyword.iskeyword(part) or not part.isidentifier():
            raise _GenError(
                f"{proto}: Python cannot import a module below the name {part!r}; "
                "rename that directory or file"
            )


def _protoc(*arguments: str) -> str:
    # The children find what this process finds, however it was started, and nothing
    # else: -P keeps a types.py in the current directory from replacing Python's own.
    path = os.pathsep.join(map(os.path.abspath, sys.path))
    done = subprocess.run(
        [sys.executable, "-P", "-m", "grpc_tools.protoc", *arguments],
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise _GenError(f"protoc failed\n{done.stderr.rstrip()}")
    return done.stderr


def _plugin(directory: Path) -> Path:
    # protoc starts plugins by one path, without arguments.
    launcher = directory / "protoc-gen-tidewire"
    python = shlex.quote(sys.executable)
    launcher.write_text(f"#!/bin/sh\nexec {python} -P -m tidewire_gen\n")
    launcher.chmod(0o700)
    return launcher


def _package(written: Path, generated: Collection[str]) -> dict[str, str]:
    files: dict[str, str] = {}
    for path in written.rglob("*.py*"):
        name = path.relative_to(written)
        text = path.read_text("utf-8")
        if name.stem.endswith("_pb2"):
            module = ".".join(name.with_suffix("").parts)
            text = relative_imports(text, module=module, generated=generated)
        if name.suffix == ".pyi":
            text = _MYPY_COMMENT + text
        files[name.as_posix()] = text
        for parent in name.parents:
            files[(parent / "__init__.py").as_posix()] = tree.INIT
    return dict(sorted(files.items()))
