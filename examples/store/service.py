"""The store: what its methods do, and the server they are served by."""

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tidewire as tw
from database import Conflict, Database, Row

try:
    from stubs import store_pb2, store_tw
except ModuleNotFoundError as error:
    if error.name != "stubs":
        raise
    raise SystemExit(
        "no stubs yet; from the project's directory: tidewire gen"
        " examples/store/store.proto -I examples/store -o examples/store/stubs"
    ) from None

MAX_NAME = 256  # characters
MAX_VALUE = 1 << 20  # bytes
MAX_LIST = 1000
POLL = 0.02  # seconds between two looks for a newer item


def _database(ctx: tw.Context) -> Database:
    database: Database = ctx.state
    return database


def _item(row: Row) -> store_pb2.Item:
    return store_pb2.Item(name=row.name, value=row.value, version=row.version)


def _name(name: str) -> str:
    if not 1 <= len(name) <= MAX_NAME:
        raise tw.InvalidArgument(
            f"the name has {len(name)} characters; allowed: 1 to {MAX_NAME}"
        )
    return name


class Store(store_tw.StoreService):
    """Short work is done on worker threads, waiting on the asyncio loop.

    ctx.state is the worker's Database, ctx.identity who calls.
    """

    def put(self, request: store_pb2.PutRequest, ctx: tw.Context) -> store_pb2.Item:
        if len(request.value) > MAX_VALUE:
            raise tw.InvalidArgument(
                f"the value has {len(request.value)} bytes; allowed: {MAX_VALUE}"
            )
        try:
            row = _database(ctx).put(
                ctx.identity or "",
                _name(request.name),
                request.value,
                request.expected_version,
            )
        except Conflict as conflict:
            raise tw.FailedPrecondition(str(conflict)) from None
        except sqlite3.OperationalError as error:  # others write all the time
            raise tw.Unavailable(f"the database is busy: {error}") from None
        return _item(row)

    def get(self, request: store_pb2.GetRequest, ctx: tw.Context) -> store_pb2.Item:
        row = _database(ctx).get(ctx.identity or "", _name(request.name))
        if row is None:
            raise tw.NotFound(f"nothing is stored as {request.name!r}")
        return _item(row)

    def list(
        self, request: store_pb2.ListRequest, ctx: tw.Context
    ) -> store_pb2.ListResponse:
        limit = min(request.limit if request.limit > 0 else 100, MAX_LIST)
        rows = _database(ctx).names(
            ctx.identity or "", request.prefix, request.after, limit + 1
        )
        return store_pb2.ListResponse(
            items=map(_item, rows[:limit]), more=len(rows) > limit
        )

    def delete(
        self, request: store_pb2.DeleteRequest, ctx: tw.Context
    ) -> store_pb2.DeleteResponse:
        found = _database(ctx).delete(ctx.identity or "", _name(request.name))
        return store_pb2.DeleteResponse(found=found)

    async def wait(
        self, request: store_pb2.WaitRequest, ctx: tw.Context
    ) -> store_pb2.Item:
        owner, name = ctx.identity or "", _name(request.name)
        while True:
            # A look-up by key takes some microseconds: the loop may do it.
            row = _database(ctx).get(owner, name)
            if row is not None and row.version > request.version:
                return _item(row)
            left = ctx.remaining()
            if left is not None and left <= POLL:
                raise tw.DeadlineExceeded(f"{name!r} has not changed meanwhile")
            await asyncio.sleep(POLL)


def make_server(
    listen: str,
    data: Path,
    tokens: dict[str, str],
    admin: str | None = None,
    workers: int = 2,
) -> tw.Server:
    """A server of the store in the file `data`, for who has one of the tokens."""

    @contextmanager
    def lifespan() -> Iterator[Database]:
        database = Database(data)
        try:
            yield database
        finally:
            database.close()

    return tw.Server(
        [Store],
        listen=listen,
        lifespan=lifespan,  # in each worker
        options=tw.ServerOptions(
            workers=workers,
            threads=4,
            admin=admin,
            max_message=2 * MAX_VALUE,
            max_concurrency=2000,
            # What works finds its limit itself; what waits costs little.
            methods={
                "store.v1.Store/Put": tw.MethodOptions(max_concurrency="auto"),
                "store.v1.Store/Get": tw.MethodOptions(max_concurrency="auto"),
                "store.v1.Store/Wait": tw.MethodOptions(max_concurrency=1000),
            },
            authenticator=tw.TokenAuthenticator(tokens),
        ),
    )
