"""Public names: every module says which are its own, and the package agrees;
and importing it stays quick."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import tidewire

ROOT = Path(tidewire.__file__).parent

# tidewire.cli and tidewire.admin are packages of their own, for tools and for
# the server; the extension has no Python names.
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages([str(ROOT)], "tidewire.")
    if module.name.rsplit(".", 1)[-1] not in ("__main__", "_ffi")
)
PUBLIC = [
    name
    for name in MODULES
    if name.count(".") == 1
    and not name.split(".")[1].startswith("_")
    and name not in ("tidewire.cli", "tidewire.admin")
]


def test_there_are_modules() -> None:
    assert {"tidewire.aio", "tidewire.channel", "tidewire.server"} <= set(PUBLIC)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_offers(name: str) -> None:
    module = importlib.import_module(name)
    names = module.__all__
    assert len(set(names)) == len(names)
    for attribute in names:
        assert hasattr(module, attribute), attribute


def test_the_packages_own_list() -> None:
    for name in tidewire.__all__:
        assert getattr(tidewire, name) is not None, name


# What a module offers that is not for users of the package.
INTERNAL = {
    "tidewire.address": {"MAX_ADDRESSES", "is_cluster", "parse_addresses"},
    "tidewire.balance": {"make"},
    "tidewire.codec": {"functions_for"},
    "tidewire.codes": {"to_code", "to_number"},
    "tidewire.context": {"outer_deadline"},
    "tidewire.errors": {"from_number"},
    # Imported by name: for plug-ins.
    "tidewire.naming": set(importlib.import_module("tidewire.naming").__all__),
    # tidewire.testing.serve and so on.
    "tidewire.testing": set(importlib.import_module("tidewire.testing").__all__),
    # Imported by name: it needs prometheus_client.
    "tidewire.metrics": set(importlib.import_module("tidewire.metrics").__all__),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_the_package_offers_what_its_public_modules_offer(name: str) -> None:
    module = importlib.import_module(name)
    for attribute in set(module.__all__) - INTERNAL.get(name, set()):
        assert attribute in tidewire.__all__, f"{name}.{attribute}"
        assert getattr(tidewire, attribute) is getattr(module, attribute)


def test_nothing_but_what_modules_offer_is_in_the_package() -> None:
    offered = {"__version__"}
    for name in MODULES:
        offered |= set(importlib.import_module(name).__all__)
    assert set(tidewire.__all__) <= offered


@pytest.mark.parametrize("name", sorted(set(tidewire.__all__) - {"__version__"}))
def test_public_names_are_documented(name: str) -> None:
    thing = getattr(tidewire, name)
    if inspect.isclass(thing) or inspect.isfunction(thing):
        assert thing.__doc__, name


def test_the_late_names_are_listed_by_dir_and_unknown_ones_are_not() -> None:
    assert tidewire.AsyncChannel.__name__ == "AsyncChannel"
    with pytest.raises(AttributeError, match="nonsense"):
        tidewire.nonsense  # noqa: B018


def test_star_import() -> None:
    namespace: dict[str, object] = {}
    exec("from tidewire import *", namespace)
    assert set(tidewire.__all__) <= set(namespace)


def test_generated_code_imports_public_names_only() -> None:
    from generated import WHERE

    tree = ast.parse((WHERE / "echo_stubs/echo_tw.py").read_text())
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "tw"
    }
    assert used
    assert used <= set(tidewire.__all__)


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return done.stdout


HEAVY = [
    "asyncio",
    "concurrent.futures",
    "prometheus_client",
    "google.protobuf",
    "httptools",
    "grpc_tools",
    "http",
    "ssl",
    "selectors",
]


def test_import_is_light() -> None:
    """(Python alone imports some of them on some platforms: compare.)"""
    code = "import sys\n{}\nprint(*sorted(sys.modules))"
    without = set(run(code.format("import threading, socket, logging")).split())
    # The editable install's own finder is no part of the package.
    finder = set(run(code.format("import _tidewire_editable_loader")).split())
    added = set(run(code.format("import tidewire")).split()) - without - finder
    assert [name for name in HEAVY if name in added] == []


def test_import_pulls_in_no_asyncio_even_with_the_finder() -> None:
    names = set(run("import sys, tidewire\nprint(*sys.modules)").split())
    assert not {"asyncio", "concurrent.futures", "prometheus_client"} & names


def test_no_thread_is_started_by_an_import() -> None:
    code = (
        "import tidewire, threading, os\n"
        "print(threading.active_count(), len(os.listdir('/proc/self/task')))"
    )
    assert run(code) == "1 1\n"


def test_no_descriptor_is_opened_by_an_import() -> None:
    code = (
        "import os\n"
        "before = len(os.listdir('/proc/self/fd'))\n"
        "import tidewire, tidewire.aio\n"
        "print(len(os.listdir('/proc/self/fd')) - before)"
    )
    assert run(code) == "0\n"


def test_only_core_imports_the_extension() -> None:
    importers = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "tidewire._ffi":
                importers.add(path.relative_to(ROOT).as_posix())
    # Three that _core itself needs, and the admin thread's default.
    assert importers <= {
        "_core.py",
        "_housekeeping.py",
        "_lend.py",
        "_release.py",
        "admin/thread.py",
    }


# Lowest first (style.md section 3): no module imports from a later layer when
# it is itself imported.
LAYERS = [
    {
        "codes",
        "errors",
        "hooks",
        "address",
        "auth",
        "balance",
        "codec",
        "coding",
        "naming",
        "node",
        "options",
        "retry",
        "_health",
        "_hints",
        "_lend",
        "_locks",
        "_memory",
        "_meta",
        "_release",
        "_systemd",
        "trace",
    },
    {"_core", "_counters", "_housekeeping"},
    {
        "_attempts",
        "_authenticate",
        "_breaker",
        "_budget",
        "_call",
        "_cancel",
        "_chain",
        "_dispatch",
        "_endpoint",
        "_lifespan",
        "_peer",
        "_pending",
        "_standing",
        "context",
        "service",
    },
    {"_processes", "_supervisor"},
    {
        "_cluster",
        "_completion",
        "_course",
        "_loop",
        "_serving",
        "channel",
        "server",
        "aio",
    },
    {"_cluster_acalls", "_cluster_calls", "client"},
    {"combo"},
    {"metrics", "admin", "cli", "testing"},
]


def test_layers() -> None:
    level = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    for path in ROOT.glob("*.py"):
        if path.stem == "__init__":
            continue
        assert path.stem in level, f"{path.name} has no layer"
        # Top level only: what a function imports when it runs is no cycle.
        for node in ast.parse(path.read_text()).body:
            for module in _imports(node):
                if module in level:
                    assert level[module] <= level[path.stem], (path.name, module)


def _imports(node: ast.stmt) -> list[str]:
    if not isinstance(node, ast.ImportFrom) or not node.module:
        return []
    if node.module == "tidewire":
        return [alias.name for alias in node.names]
    return [node.module.removeprefix("tidewire.").split(".")[0]]


@pytest.mark.parametrize("name", ["_call", "_dispatch"])
def test_what_decides_never_waits(name: str) -> None:
    tree = ast.parse((ROOT / f"{name}.py").read_text())
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        assert not {"asyncio", "threading", "concurrent.futures"} & set(names)
