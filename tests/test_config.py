"""What a TOML says arrives typed; what it cannot mean is refused with its place; secrets stay where they are.

Wrong files, sentence by sentence, are in `cli/test_check.py`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import field
from msgspec.structs import replace

from loopcore.config import Config, SinkTable, When, is_loopback, load, parse
from loopcore.config.lines import line_of, path_of
from loopcore.errors import ConfigError
from loopcore.options import Options, Secret, Size
from loopcore.testing import make_sample
from loopcore.types import Box, Prediction, SampleInfo

NODE = {"node": {"data_dir": "data", "name": "gate"}}


class Cloud(Options, frozen=True, kw_only=True):
    url: str
    password: Secret
    extra: dict[str, Secret] = field(default_factory=dict)
    retries: int = 3


def write(folder: Path, text: str) -> Path:
    (folder / "loop.toml").write_text('[node]\ndata_dir = "data"\n' + text)
    return folder / "loop.toml"


def test_whole_file_arrives_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "t")
    config = load(
        write(
            tmp_path,
            """
            [server]
            host = "0.0.0.0"
            token = { env = "TOKEN" }
            max_body = "1 MiB"
            [backend]
            driver = "onnx"
            model = "models/a"
            threads = 2
            [[selectors]]
            driver = "uncertain"
            per_hour = 10
            min = 0.1
            [[sinks]]
            driver = "folder"
            path = "out"
            max_rate = "500 KB/s"
            between = "22:00-06:00"
            when = { labels = ["penguin"] }
            [outbox]
            max_bytes = "1 GB"
            max_age = "30 d"
            [inference]
            queue = 5
            """,
        )
    )
    assert config.node.data_dir == tmp_path / "data"
    assert config.server.token == Secret("t")
    assert config.server.max_body == 2**20
    assert config.backend
    assert (config.backend.name, config.backend.key, config.backend.options) == ("onnx", "backend", {"threads": 2})
    assert config.model_path == tmp_path / "models/a"
    assert (config.selectors[0].per_hour, config.selectors[0].options) == (10, {"min": 0.1})
    assert config.sinks[0].key == "sinks[0]"
    assert config.sinks[0].max_rate == 500_000
    assert config.sinks[0].when == When(labels=("penguin",))
    assert (config.outbox.max_bytes, config.outbox.max_age) == (10**9, 30 * 86400)
    assert config.inference.queue == 5
    assert [(kind, table.driver) for kind, table in config.drivers()] == [
        ("selector", "uncertain"),
        ("sink", "folder"),
        ("backend", "onnx"),
    ]
    assert config.warnings == []


def test_defaults_are_safe() -> None:
    config = parse(NODE)
    assert (config.server.host, config.server.port, config.server.max_body) == ("127.0.0.1", 8004, Size(64_000_000))
    assert config.outbox.when_full == "reject"
    assert config.inference.queue == 64
    assert config.backend is None
    assert config.sinks == ()


@pytest.mark.parametrize(
    ("model", "path"),
    [("follow", None), ("pause", None), ("1.2", None), ("a.onnx", "a.onnx"), ("./a", "a"), ("/a/b.zip", "/a/b.zip")],
)
def test_model_is_a_path_if_it_looks_like_one(model: str, path: str | None) -> None:
    config = parse(NODE | {"backend": {"driver": "onnx", "model": model}})
    assert config.model_path == (Path(path) if path else None)


def with_platforms(*platforms: dict[str, Any], **sink: Any) -> Config:
    return parse(NODE | {"platforms": list(platforms), "sinks": [{"driver": "cloud", **sink}]})


LOOP = {"name": "loop", "driver": "cloud", "url": "https://a", "password": {"env": "HOME"}, "organization": "zoo"}


def test_sink_takes_absent_options_from_the_platform_of_its_driver_and_only_those_it_has() -> None:
    config = with_platforms(LOOP, retries=5)
    options = config.decode(config.sinks[0], Cloud)
    assert (options.url, options.retries) == ("https://a", 5)


def test_sink_keeps_what_it_says_itself() -> None:
    config = with_platforms(LOOP, url="https://b")
    assert config.decode(config.sinks[0], Cloud).url == "https://b"


def test_like_names_a_platform_of_any_driver() -> None:
    config = with_platforms(LOOP, LOOP | {"name": "b", "driver": "other", "url": "https://c"}, like="b")
    assert config.decode(config.sinks[0], Cloud).url == "https://c"


def test_with_two_platforms_of_its_driver_a_sink_takes_nothing_and_says_so() -> None:
    config = with_platforms(LOOP, LOOP | {"name": "b"})
    with pytest.raises(ConfigError, match=r"sinks\[0\].url: this key is missing; or say .* 'loop' or 'b'"):
        config.decode(config.sinks[0], Cloud)


def test_mistake_in_a_value_that_came_from_the_platform_is_located_there(tmp_path: Path) -> None:
    text = '[[platforms]]\ndriver = "cloud"\nurl = 5\npassword = { env = "HOME" }\n[[sinks]]\ndriver = "cloud"\n'
    config = load(write(tmp_path, text))
    with pytest.raises(ConfigError) as caught:
        config.decode(config.sinks[0], Cloud)
    assert (caught.value.line, caught.value.key) == (5, "platforms[0].url")


def test_literal_secrets_are_warned_about_once_and_shown_nowhere(tmp_path: Path) -> None:
    text = '[[sinks]]\ndriver = "cloud"\nurl = "u"\npassword = "canary"\nextra = { a = "canary" }\n'
    config = load(write(tmp_path, text))
    options = config.decode(config.sinks[0], Cloud)
    config.decode(config.sinks[0], Cloud)
    assert [warning.split(": ")[:2] for warning in config.warnings] == [
        [f"{tmp_path / 'loop.toml'}:6", "sinks[0].password"],
        [f"{tmp_path / 'loop.toml'}:7", "sinks[0].extra.a"],
    ]
    shown = f"{config!r} {config} {config.sinks!r} {config.document!r} {options!r} {config.warnings}"
    assert "canary" not in shown


@pytest.mark.parametrize(
    "table",
    [
        {"password": ["canary"]},
        {"password": {"env": ["canary"]}},
        {"password": {"value": "canary"}},
        {"pasword": "canary"},
        {"password": "canary", "extra": "canary"},
        {"password": "canary", "retries": "x"},
    ],
)
def test_errors_never_show_a_secret(table: dict[str, Any]) -> None:
    config = parse(NODE | {"sinks": [{"driver": "cloud", "url": "u", **table}]})
    with pytest.raises(ConfigError) as caught:
        config.decode(config.sinks[0], Cloud)
    assert "canary" not in f"{caught.value} {caught.value!r} {caught.value.__cause__!r}"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.8.9.1", True),
        ("0.0.0.0", False), ("::", False), ("192.168.1.4", False), ("localhost.evil.org", False),
        ("127.0.0.1.a", False),
    ],
)  # fmt: skip
def test_other_machines_need_a_token_or_permission(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
    if not loopback:
        with pytest.raises(ConfigError, match="expected a 'token', or 'allow_anonymous = true'"):
            parse(NODE | {"server": {"host": host}})
    for more in ({"allow_anonymous": True}, {"token": "t"}):
        assert parse(NODE | {"server": {"host": host, **more}}).server.host == host


def sample(**changes: Any) -> SampleInfo:
    return replace(make_sample(1).info, **changes)


@pytest.mark.parametrize(
    ("when", "wanted"),
    [
        (When(), True),
        (When(reasons=("uncertain", "x")), True),
        (When(reasons=("x",)), False),
        (When(labels=("penguin",)), True),
        (When(labels=("seal",)), True),
        (When(labels=("cat",)), False),
        (When(cameras=("gate",)), True),
        (When(cameras=("door",)), False),
        (When(tags=("night",)), True),
        (When(tags=("night",), reasons=("x",)), False),
    ],
)
def test_when_wants_any_word_of_every_key(when: When, wanted: bool) -> None:
    box = Box(label="penguin", confidence=0.5, x=0, y=0, width=1, height=1)
    seal = Box(label="seal", x=0, y=0, width=1, height=1)
    info = sample(
        reasons=("uncertain",),
        camera="gate",
        tags=("night", "rain"),
        prediction=Prediction(detections=(box,)),
        annotations=(seal,),
        kept=datetime(2025, 1, 1, tzinfo=UTC),
    )
    assert when.matches(info) is wanted


def test_when_matches_nothing_where_nothing_is_known() -> None:
    info = sample(camera=None, prediction=None, annotations=None, tags=(), reasons=())
    for when in (When(cameras=("a",)), When(labels=("a",)), When(tags=("a",)), When(reasons=("a",))):
        assert not when.matches(info)


LINES = """\
[node]
name = "x"
a.b.c = 5
yes = true

[[sinks]]
driver = "a"
when = { reasons = ["x"],
   labels = [1] }
list = [
  {x = 1},
  {y = 2},
]
[sinks.sub]
q = 1
[[sinks]]
  [sinks.sub.deep]
  z = 3
[p.q.r]
a = 1
[p]
z = 1
[[p.q.w]]
k = 1
"""


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("node", 1), ("node.name", 2), ("node.a", 3), ("node.a.b.c", 3), ("node.yes", 4), ("sinks", 6),
        ("sinks[0]", 6), ("sinks[0].driver", 7), ("sinks[0].when.labels", 9), ("sinks[0].list[1].y", 12),
        ("sinks[0].sub.q", 15), ("sinks[1]", 16), ("sinks[1].sub.deep.z", 18), ("sinks[1].sub", 17),
        ("p.q.r.a", 20), ("p.z", 22), ("p", 19), ("p.q.w[0].k", 24), ("node.missing", 1), ("sinks[0].missing", 6),
        ("missing", None), ("sinks[7]", 6),
    ],
)  # fmt: skip
def test_line_of_a_key_is_found(key: str, line: int | None) -> None:
    assert line_of(LINES, path_of(key)) == line


NAMES = st.text("abcdef", min_size=1, max_size=3)
VALUES = st.recursive(
    st.integers(0, 9) | st.booleans() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40)
@given(tables=st.dictionaries(NAMES, st.dictionaries(NAMES, VALUES, min_size=1, max_size=4), min_size=1, max_size=3))
def test_line_of_a_top_key_is_the_line_that_holds_it(tables: dict[str, dict[str, Any]]) -> None:
    text = tomlkit.dumps(tables)
    for name, table in tables.items():
        for key, value in table.items():
            found = line_of(text, (name, key))
            if not isinstance(value, dict) and not (isinstance(value, list) and value and isinstance(value[0], dict)):
                assert found
                assert text.split("\n")[found - 1].startswith(f"{key} = ")


def test_configuration_built_in_memory_has_errors_without_a_line() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(NODE | {"sinks": [{"driver": "a", "priority": "high"}]})
    assert str(caught.value) == "sinks[0].priority: expected a whole number, got a string"


def test_utf8_mark_at_the_beginning_is_taken(tmp_path: Path) -> None:
    (tmp_path / "loop.toml").write_text('\ufeff[node]\ndata_dir = "d"\n')
    assert load(tmp_path / "loop.toml").node.data_dir == tmp_path / "d"


def test_name_of_a_sink_is_its_drivers_unless_given() -> None:
    config = parse(NODE | {"sinks": [{"driver": "a"}, {"driver": "a", "name": "b"}]})
    assert [table.name for table in config.sinks] == ["a", "b"]
    assert isinstance(config.sinks[0], SinkTable)


def test_keys_named_like_the_tables_own_fields_belong_to_the_driver() -> None:
    config = parse(NODE | {"sinks": [{"driver": "a", "key": "k", "options": {"x": 1}}]})
    assert config.sinks[0].key == "sinks[0]"
    assert config.sinks[0].options == {"key": "k", "options": {"x": 1}}
