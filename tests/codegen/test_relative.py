"""Imports of protoc's modules made relative: those that should be, and no others."""

from __future__ import annotations

import pytest
from tidewire.cli.relative import relative_imports

GENERATED = {"top_pb2", "a.b.c_pb2", "a.d_pb2", "typing.e_pb2"}


@pytest.mark.parametrize(
    ("absolute", "relative"),
    [
        ("import top_pb2 as top__pb2", "from ... import top_pb2 as top__pb2"),
        ("import top_pb2", "from ... import top_pb2"),
        ("from a.b import c_pb2 as _c_pb2", "from . import c_pb2 as _c_pb2"),
        ("from a import d_pb2", "from .. import d_pb2"),
        ("import a.d_pb2 as d", "from .. import d_pb2 as d"),
        ("from a.d_pb2 import *", "from ..d_pb2 import *"),
        ("from a.b.c_pb2 import C as C, E", "from .c_pb2 import C as C, E"),
        ("from typing import e_pb2 as e", "from ...typing import e_pb2 as e"),
    ],
)
def test_imports_of_generated_modules(absolute: str, relative: str) -> None:
    changed = relative_imports(absolute, module="a.b.x_pb2", generated=GENERATED)
    assert changed == relative


@pytest.mark.parametrize(
    "text",
    [
        "from google.protobuf import empty_pb2 as empty",
        "from google.protobuf.empty_pb2 import *",
        "from typing import ClassVar as _ClassVar",
        "import other_pb2 as other",
        "import a.d_pb2",
        "from . import c_pb2",
        "text = 'import top_pb2'",
        '"""\nimport top_pb2\n"""',
        "# import top_pb2",
    ],
)
def test_everything_else_stays(text: str) -> None:
    assert relative_imports(text, module="a.b.x_pb2", generated=GENERATED) == text


def test_text_around_imports_stays() -> None:
    text = (
        "x = 'é\x0c'; import top_pb2 as t; y = 1\n"
        "try:\n  from a.b import (\n    c_pb2 as c)  # why\nexcept ImportError: ...\n"
        "import top_pb2 as u\n"
    )
    assert relative_imports(text, module="x_pb2", generated=GENERATED) == (
        "x = 'é\x0c'; from . import top_pb2 as t; y = 1\n"
        "try:\n  from .a.b import c_pb2 as c  # why\n\nexcept ImportError: ...\n"
        "from . import top_pb2 as u\n"
    )
