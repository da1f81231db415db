"""protoc-gen-tidewire: Python services and clients from .proto files.

The package needs protobuf only, so that the plugin also runs where the C core of
tidewire is not built.
"""

__all__ = ["RUNTIME", "__version__"]

__version__ = "0.1.0"

RUNTIME = "0.1"
"""The oldest tidewire that generated modules run on; they ask for it on import."""
