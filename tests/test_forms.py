"""What a request carries: bodies and the parts of forms."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopcore.errors import FrameError
from loopcore.forms import MAX_HEAD, Field, read_body, read_form

KIND = "multipart/form-data; boundary=b"


def part(name: str = "file", content: bytes = b"x", more: str = "") -> bytes:
    return b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n' % (name.encode(), more.encode(), content)


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1),
            st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters='"\\'), min_size=1),
            st.binary(),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_what_a_client_writes_is_read(files: list[tuple[str, str, bytes]]) -> None:
    parts = [(name, (filename, data, "image/jpeg")) for name, filename, data in files]
    request = httpx.Request("POST", "http://x", files=parts)
    request.read()
    fields = read_form(request.content, request.headers["content-type"])
    assert [(one.data, one.media) for one in fields] == [(data, "image/jpeg") for _, _, data in files]
    assert [one.filename for one in fields] == [filename for _, filename, _ in files]


@given(st.binary())
def test_any_bytes_are_a_form_or_a_frame_error(body: bytes) -> None:
    for whole in (body, b"--b\r\n" + body, part() + body, part() + body + b"\r\n--b--"):
        try:
            fields = read_form(whole, KIND)
        except FrameError as exc:
            assert exc.status in (400, 413)  # noqa: PT017 - either outcome is right
        else:
            assert all(isinstance(one, Field) for one in fields)


@pytest.mark.parametrize(
    ("disposition", "name", "filename"),
    [
        ('form-data; name="file"; filename="a.jpg"', "file", "a.jpg"),
        ("form-data; name=file; filename=a.jpg", "file", "a.jpg"),
        ('FORM-DATA;name="file";FileName="a;b=c.jpg"', "file", "a;b=c.jpg"),
        (r'form-data; name="a\"b"; filename="c:\dir\x.jpg"', 'a"b', r"c:\dir\x.jpg"),
        ('form-data; name="größe"', "größe", None),
        ('form-data; name="x"; name="y"', "x", None),
    ],
)
def test_names_are_read_as_clients_write_them(disposition: str, name: str, filename: str | None) -> None:
    body = f"--b\r\ncontent-disposition:{disposition}\r\n\r\ndata\r\n--b--\r\n".encode()
    assert read_form(body, KIND) == [Field(name=name, data=b"data", filename=filename)]


def test_a_preamble_an_epilogue_and_white_space_behind_a_boundary_mean_nothing() -> None:
    body = b"not this\r\n--b \t\r\nContent-Disposition: form-data; name=a\r\n\r\n\r\n--b--\r\nnor this"
    assert read_form(body, KIND) == [Field(name="a", data=b"")]
    assert read_form(body, 'multipart/form-data; charset=utf-8; boundary="b"') == [Field(name="a", data=b"")]


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"", KIND, 400),
        (part(), KIND, 400),
        (part() + b"--b", KIND, 400),
        (b"--b\r\n\r\n\r\n--b--", KIND, 400),
        (b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--", KIND, 400),
        (b'--b\r\nContent-Disposition: attachment; name="a"\r\n\r\nx\r\n--b--', KIND, 400),
        (b"--b\r\nContent-Disposition: form-data; name=a\r\n--b--", KIND, 400),
        (b"--b\r\n" + b"a: b\r\n" * MAX_HEAD + b"\r\nx\r\n--b--", KIND, 400),
        (b"-" * 1_000_000, KIND, 400),
        (part() * 9 + b"--b--", KIND, 413),
        (part() + b"--b--", "multipart/form-data", 400),
        (part() + b"--b--", "multipart/form-data; boundary=" + "b" * 71, 400),
        (part() + b"--b--", "application/json", 415),
        (part() + b"--b--", "", 415),
    ],
)
def test_what_is_no_form_is_refused(body: bytes, kind: str, status: int) -> None:
    with pytest.raises(FrameError) as caught:
        read_form(body, kind, max_parts=8)
    assert caught.value.status == status


@pytest.mark.anyio
async def test_a_body_is_put_together_from_its_pieces() -> None:
    async def receive() -> MutableMapping[str, Any]:
        return messages.pop(0)

    messages = [{"type": "http.request", "body": b"a", "more_body": True}, {"type": "http.request", "body": b"b"}]
    assert await read_body(receive) == b"ab"
    messages = [{"type": "http.request"}]
    assert await read_body(receive) == b""
    messages = [{"type": "http.request", "body": b"a", "more_body": True}, {"type": "http.disconnect"}]
    assert await read_body(receive) is None
    messages = [{"type": "http.disconnect"}]
    assert await read_body(receive) is None
