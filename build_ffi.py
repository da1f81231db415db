"""Feeds csrc/api.h to cffi and names the extension; no other logic."""

import re
from pathlib import Path

from cffi import FFI

ROOT = Path(__file__).resolve().parent

ffibuilder = FFI()
# The compiler reads api.h through core.h, cffi reads the same text; it has no
# preprocessor, and comments are all that is in its way.
ffibuilder.cdef(re.sub(r"/\*.*?\*/", "", (ROOT / "csrc/api.h").read_text(), flags=re.S))
ffibuilder.set_source("tidewire._ffi", '#include "core.h"', py_limited_api=True)
