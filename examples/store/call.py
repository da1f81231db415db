"""A client of the store.

python examples/store/call.py --secret secret put greeting hello
"""

import argparse
import sys

import tidewire as tw

try:
    from stubs import store_pb2, store_tw
except ModuleNotFoundError as error:
    if error.name != "stubs":
        raise
    sys.exit(
        "no stubs yet; from the project's directory: tidewire gen"
        " examples/store/store.proto -I examples/store -o examples/store/stubs"
    )


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description="Calls the store.")
    add = parser.add_argument
    add("--connect", default="127.0.0.1:8010", metavar="HOST:PORT")
    add("--secret", required=True)
    add("--timeout", type=float, default=5.0, metavar="S", help="default: 5")
    commands = parser.add_subparsers(dest="command", required=True)
    put = commands.add_parser("put", help="write a value")
    put.add_argument("name")
    put.add_argument("value")
    put.add_argument("--expect", type=int, default=0, metavar="VERSION")
    for command in ("get", "delete", "wait"):
        commands.add_parser(command).add_argument("name")
    commands.choices["wait"].add_argument("version", type=int)
    commands.add_parser("list").add_argument("prefix", nargs="?", default="")
    return parser.parse_args()


def said(store: store_tw.StoreClient, options: argparse.Namespace) -> str:
    """What the command has to say."""
    limit = options.timeout
    match options.command:
        case "put":
            request = store_pb2.PutRequest(
                name=options.name,
                value=options.value.encode(),
                expected_version=options.expect,
            )
            return f"version {store.put(request, timeout=limit).version}"
        case "get":
            item = store.get(store_pb2.GetRequest(name=options.name), timeout=limit)
        case "delete":
            gone = store.delete(
                store_pb2.DeleteRequest(name=options.name), timeout=limit
            )
            return "deleted" if gone.found else "there was none"
        case "wait":
            item = store.wait(
                store_pb2.WaitRequest(name=options.name, version=options.version),
                timeout=limit,
            )
        case _:
            listed = store.list(
                store_pb2.ListRequest(prefix=options.prefix), timeout=limit
            )
            names = [f"{item.name} (version {item.version})" for item in listed.items]
            return "\n".join([*names, "..."] if listed.more else names)
    return f"{item.value.decode(errors='replace')} (version {item.version})"


def main() -> int:
    """0 when the call was answered."""
    options = arguments()
    try:
        with tw.Channel(
            options.connect,
            options=tw.ChannelOptions(credentials=options.secret.encode()),
        ) as channel:
            print(said(store_tw.StoreClient(channel), options))
    except tw.RpcError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except ValueError as error:  # the address, the timeout
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
