"""What cannot be meant although each key by itself is fine: names taken twice or never given, and an open door."""

from __future__ import annotations

import re
from collections.abc import Sequence

from loopcore.config.decoding import nearest
from loopcore.config.root import Config
from loopcore.config.tables import DriverTable, ServerTable

_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?"
_HOST = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*\.?")


def check(config: Config) -> None:
    """Refuse what cannot be meant.

    Raises:
        ConfigError: The first such thing.
    """
    for tables in (config.platforms, config.selectors, config.sinks, config.sources):
        _check_names(config, tables)
    platforms = [platform.name for platform in config.platforms]
    for platform in config.platforms:
        if platform.name == "self":
            raise config.error(f"{platform.key}.name", "'self' means this node; give the platform another name")
    for sink in config.sinks:
        if sink.like is not None:
            _check_platform(config, f"{sink.key}.like", sink.like, platforms)
    for rollout in config.rollouts:
        _check_platform(config, f"{rollout.key}.from", rollout.source, platforms)
        _check_platform(config, f"{rollout.key}.to", rollout.target, [*platforms, "self"])
        if rollout.source == rollout.target:
            raise config.error(f"{rollout.key}.to", "expected another platform than 'from', or 'self'")
    if config.outbox.max_bytes < 1:
        raise config.error("outbox.max_bytes", "expected more than 0 bytes")
    _check_server(config, config.server)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    if host in {"127.0.0.1", "localhost", "::1"}:
        return True
    from ipaddress import ip_address

    return _is_address(host) and ip_address(host).is_loopback


def _is_address(host: str) -> bool:
    from ipaddress import ip_address

    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _check_server(config: Config, table: ServerTable) -> None:
    if not _HOST.fullmatch(table.host) and not _is_address(table.host):
        what = "expected an address or a host name, such as '127.0.0.1', '0.0.0.0' or 'gate-3.local'"
        raise config.error("server.host", what)
    if table.token is not None and not table.token.reveal():
        raise config.error("server.token", "expected a token; this one is empty")
    if table.token is None and not table.allow_anonymous and not is_loopback(table.host):
        what = f"other machines reach {table.host}, so expected a 'token', or 'allow_anonymous = true'"
        raise config.error("server.host", what)
    if table.max_body < 1:
        raise config.error("server.max_body", "expected more than 0 bytes")
    for index, name in enumerate(table.allowed_hosts):
        if not _HOST.fullmatch(name) and not _is_address(name):
            raise config.error(f"server.allowed_hosts[{index}]", "expected a host name without scheme, port or '*'")
    config.note_literals(table, "server")


def _check_names(config: Config, tables: Sequence[DriverTable]) -> None:
    seen: dict[str, DriverTable] = {}
    for table in tables:
        if other := seen.get(table.name):
            key = table.key if table.name == table.driver else f"{table.key}.name"
            what = f"the name {table.name!r} is taken by {other.key}, expected another 'name' for this table"
            raise config.error(key, what)
        seen[table.name] = table


def _check_platform(config: Config, key: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        near = nearest(name, names)
        hint = f"; did you mean {near!r}?" if near else ""
        raise config.error(key, f"there is no platform {name!r}{hint} (there are: {', '.join(names) or 'none'})")
