"""What a handler sees, over events made by hand."""

import time

import pytest
from tidewire import _core
from tidewire.context import Context, current_context
from tidewire.errors import ClosedError


def context(**fields):
    event = _core.ffi.new("tw_event *", fields)
    ctx = Context()
    ctx._method = "unit.Context/Do"
    ctx._raw = bytes(_core.ffi.buffer(event))
    ctx._has_attachment = bool(event.attachment_len)
    return ctx


@pytest.mark.parametrize(
    ("wire", "log_id"), [(0, 0), (1, 1), (-1, 2**64 - 1), (-(2**63), 2**63)]
)
def test_log_id_is_unsigned(wire, log_id) -> None:
    assert context(log_id=wire).log_id == log_id


def test_no_deadline() -> None:
    assert context().deadline is None
    assert context().remaining() is None


def test_deadline() -> None:
    ctx = context(deadline_ns=time.monotonic_ns() + 2_000_000_000)
    assert ctx.deadline == pytest.approx(time.monotonic() + 2, abs=0.5)
    assert 1.5 < ctx.remaining() <= 2


def test_remaining_ends_at_0() -> None:
    assert context(deadline_ns=1).remaining() == 0.0


def test_no_attachment_needs_no_request() -> None:
    assert context().attachment == b""
    assert context().attachment.readonly


def test_an_answered_call_says_what_to_do() -> None:
    ctx = context(attachment_len=5)
    for read in ("attachment", "metadata", "request_id"):
        with pytest.raises(ClosedError, match="before the handler returns"):
            getattr(ctx, read)


def test_an_answered_call_is_cancelled() -> None:
    assert context().cancelled()


def test_a_peer_that_is_gone() -> None:
    ctx = context()
    assert ctx.peer == ""
    assert repr(ctx) == "<Context unit.Context/Do from >"


@pytest.mark.parametrize("data", [b"x", bytearray(b"x"), memoryview(b"x"), None, b""])
def test_reply_attachment(data) -> None:
    ctx = context()
    assert ctx.reply_attachment is None
    assert not ctx._has_extra
    ctx.reply_attachment = data
    assert ctx.reply_attachment is data
    x, _ = ctx._extra()
    assert x.attachment_len == len(data or b"")


@pytest.mark.parametrize("wrong", ["text", 7, [b"x"]])
def test_reply_attachment_of_another_type(wrong) -> None:
    with pytest.raises(TypeError, match=r"reply_attachment is .*; allowed: bytes"):
        context().reply_attachment = wrong


def test_reply_metadata_is_copied() -> None:
    ctx = context()
    assert ctx.reply_metadata == {}
    fields = {"a": "b"}
    ctx.reply_metadata = fields
    fields["c"] = "d"
    assert ctx.reply_metadata == {"a": "b"}


def test_a_memoryview_of_other_items_is_sent_as_bytes() -> None:
    import array

    ctx = context()
    ctx.reply_attachment = memoryview(array.array("i", [1, 2, 3]))
    x, _keep = ctx._extra()
    data = bytes(_core.ffi.buffer(x.attachment, x.attachment_len))
    assert data == array.array("i", [1, 2, 3]).tobytes()


def test_contexts_do_not_share_what_is_set() -> None:
    one, other = context(), context()
    one.reply_attachment = b"x"
    one.reply_metadata = {"a": "b"}
    assert other.reply_attachment is None
    assert other.reply_metadata == {}
    assert not other._has_extra


def test_no_current_context_here() -> None:
    assert current_context() is None
