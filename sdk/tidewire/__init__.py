"""Tidewire: RPC for Python that speaks brpc.

Public names only.  The asyncio face, the balancers, the metrics and what is
for tests are imported when first used, so that `import tidewire` stays quick.
"""

from typing import TYPE_CHECKING, Any

from tidewire._call import Response
from tidewire.auth import Authenticator, TokenAuthenticator
from tidewire.channel import Channel, UnaryMethod
from tidewire.client import AsyncClient, Client
from tidewire.codec import Codec, ProtobufCodec
from tidewire.codes import Code, Errno
from tidewire.coding import Checksum, Coding, Compression, ContentType
from tidewire.context import Context, current_context, deadline
from tidewire.errors import (
    Aborted,
    AddressError,
    AlreadyExists,
    Attempt,
    Cancelled,
    ClosedError,
    CodecError,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    ForkError,
    Internal,
    InvalidArgument,
    NotFound,
    OptionError,
    OutOfRange,
    Part,
    PermissionDenied,
    Phase,
    ProtocolError,
    ResourceExhausted,
    RpcError,
    Sent,
    TidewireError,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    Unknown,
)
from tidewire.hooks import Call, Hook, Outcome, around
from tidewire.node import Node
from tidewire.options import (
    Address,
    AutoLimit,
    CallOptions,
    ChannelOptions,
    HealthCheck,
    KeepAlive,
    MethodOptions,
    Register,
    ServerOptions,
    SocketOptions,
    TimeoutLimit,
    parse_address,
)
from tidewire.retry import BackupPolicy, RetryPolicy
from tidewire.server import Server
from tidewire.service import (
    VERSION as __version__,
)
from tidewire.service import (
    GenericService,
    Idempotency,
    MethodInfo,
    Reply,
    Service,
    require_runtime,
)
from tidewire.trace import Trace

if TYPE_CHECKING:
    from tidewire import testing as testing
    from tidewire.aio import AsyncChannel, AsyncUnaryMethod
    from tidewire.balance import Balancer, md5_32, murmur32
    from tidewire.combo import (
        SKIP,
        AsyncDynamicPartitionChannel,
        AsyncParallelChannel,
        AsyncPartitionChannel,
        AsyncSelectiveChannel,
        DynamicPartitionChannel,
        ParallelChannel,
        PartitionChannel,
        SelectiveChannel,
        Skip,
    )

__all__ = [
    "SKIP",
    "Aborted",
    "Address",
    "AddressError",
    "AlreadyExists",
    "AsyncChannel",
    "AsyncClient",
    "AsyncDynamicPartitionChannel",
    "AsyncParallelChannel",
    "AsyncPartitionChannel",
    "AsyncSelectiveChannel",
    "AsyncUnaryMethod",
    "Attempt",
    "Authenticator",
    "AutoLimit",
    "BackupPolicy",
    "Balancer",
    "Call",
    "CallOptions",
    "Cancelled",
    "Channel",
    "ChannelOptions",
    "Checksum",
    "Client",
    "ClosedError",
    "Code",
    "Codec",
    "CodecError",
    "Coding",
    "Compression",
    "ContentType",
    "Context",
    "DataLoss",
    "DeadlineExceeded",
    "DynamicPartitionChannel",
    "Errno",
    "FailedPrecondition",
    "ForkError",
    "GenericService",
    "HealthCheck",
    "Hook",
    "Idempotency",
    "Internal",
    "InvalidArgument",
    "KeepAlive",
    "MethodInfo",
    "MethodOptions",
    "Node",
    "NotFound",
    "OptionError",
    "OutOfRange",
    "Outcome",
    "ParallelChannel",
    "Part",
    "PartitionChannel",
    "PermissionDenied",
    "Phase",
    "ProtobufCodec",
    "ProtocolError",
    "Register",
    "Reply",
    "ResourceExhausted",
    "Response",
    "RetryPolicy",
    "RpcError",
    "SelectiveChannel",
    "Sent",
    "Server",
    "ServerOptions",
    "Service",
    "Skip",
    "SocketOptions",
    "TidewireError",
    "TimeoutLimit",
    "TokenAuthenticator",
    "Trace",
    "UnaryMethod",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Unknown",
    "__version__",
    "around",
    "current_context",
    "deadline",
    "md5_32",
    "murmur32",
    "parse_address",
    "require_runtime",
]

# name: module
_LATE = {
    "SKIP": "tidewire.combo",
    "AsyncChannel": "tidewire.aio",
    "AsyncDynamicPartitionChannel": "tidewire.combo",
    "AsyncParallelChannel": "tidewire.combo",
    "AsyncPartitionChannel": "tidewire.combo",
    "AsyncSelectiveChannel": "tidewire.combo",
    "AsyncUnaryMethod": "tidewire.aio",
    "Balancer": "tidewire.balance",
    "DynamicPartitionChannel": "tidewire.combo",
    "ParallelChannel": "tidewire.combo",
    "PartitionChannel": "tidewire.combo",
    "SelectiveChannel": "tidewire.combo",
    "Skip": "tidewire.combo",
    "md5_32": "tidewire.balance",
    "murmur32": "tidewire.balance",
}


def __getattr__(name: str) -> Any:
    if name in _LATE:
        import importlib

        return getattr(importlib.import_module(_LATE[name]), name)
    if name == "testing":
        import importlib

        return importlib.import_module("tidewire.testing")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
