"""Imports between generated modules, made relative.

protoc writes them absolute, as if the output directory were on sys.path; then the
package could neither be renamed nor live inside another one.
"""

from __future__ import annotations

import ast
from collections.abc import Collection

from tidewire_gen.model import relative_package

__all__ = ["relative_imports"]


def relative_imports(text: str, *, module: str, generated: Collection[str]) -> str:
    """The text of `module` with its imports of `generated` modules made relative."""
    package = module.rpartition(".")[0]
    # The parser counts lines by \n alone and columns in bytes.
    lines = text.encode().split(b"\n")
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        changed = _relative(node, package, generated)
        if changed:
            start, end = node.lineno - 1, (node.end_lineno or node.lineno) - 1
            before = lines[start][: node.col_offset]
            after = lines[end][node.end_col_offset :]
            # Emptied lines stay, so that the positions of other statements do.
            lines[start : end + 1] = [before + changed.encode() + after]
            lines[start + 1 : start + 1] = [b""] * (end - start)
    return b"\n".join(lines).decode()


def _relative(
    node: ast.Import | ast.ImportFrom, package: str, generated: Collection[str]
) -> str | None:
    names = ", ".join(map(ast.unparse, node.names))
    if isinstance(node, ast.ImportFrom):
        if node.level or node.module is None:
            return None
        # "from a.b_pb2 import X" and "from a import b_pb2"; protoc never mixes the
        # latter with other names.
        submodules = [f"{node.module}.{alias.name}" for alias in node.names]
        if node.module in generated or all(name in generated for name in submodules):
            return f"from {relative_package(package, node.module)} import {names}"
        return None
    (alias, *others) = node.names
    target, _, last = alias.name.rpartition(".")
    # "import a.b_pb2" without "as" binds the name a, which no relative import does.
    if others or alias.name not in generated or (target and not alias.asname):
        return None
    name = f"{last} as {alias.asname}" if alias.asname else last
    return f"from {relative_package(package, target)} import {name}"
