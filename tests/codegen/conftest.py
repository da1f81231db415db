from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from codegen_cases import CASES, ROOT, SOURCES, Outcome, generate

# Code generation is all Python, so these tests also run where nothing is installed.
if importlib.util.find_spec("tidewire_gen") is None:
    sys.path[:0] = map(str, SOURCES)


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Each case generated once, as the package golden.<case>."""
    golden = tmp_path_factory.mktemp("generated") / "golden"
    return {case: generate(case, golden / case) for case in CASES}


@pytest.fixture(scope="session")
def runtime() -> Path:
    """The directory of the tidewire that generated modules import."""
    sdk = ROOT / "sdk"
    stubs = Path(__file__).with_name("stubs")
    return sdk if (sdk / "tidewire" / "__init__.py").exists() else stubs
