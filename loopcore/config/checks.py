"""What cannot be meant although each key by itself is fine: names taken twice or never given, and an open door."""

from __future__ import annotations

import re
from collections.abc import Sequence

from loopcore.config.decoding import nearest
from loopcore.config.root import Config
from loopcore.config.tables import ConversionTable, DriverTable, RolloutTable, ServerTable

MIN_EVERY_S = 0.1
"""A platform is not asked more often."""

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
    _check_rollouts(config, platforms)
    _check_conversions(config, platforms)
    _check_trainer(config)
    if config.outbox.max_bytes < 1:
        raise config.error("outbox.max_bytes", "expected more than 0 bytes")
    _check_server(config, config.server)


def _check_rollouts(config: Config, platforms: Sequence[str]) -> None:
    taken: dict[str, str] = {}
    for rollout in config.rollouts:
        _check_platform(config, f"{rollout.key}.from", rollout.source, platforms)
        _check_platform(config, f"{rollout.key}.to", rollout.target, [*platforms, "self"])
        if rollout.source == rollout.target:
            raise config.error(f"{rollout.key}.to", "expected another platform than 'from', or 'self'")
        if other := taken.get(rollout.target):
            what = f"{rollout.target!r} gets its models by {other} already, and two would undo each other's work"
            raise config.error(f"{rollout.key}.to", what)
        if rollout.target == "self" and config.backend is None:
            raise config.error(rollout.key, "a rollout to 'self' needs a [backend] that runs the models")
        _check_every(config, rollout)
        if rollout.report < 1:
            raise config.error(f"{rollout.key}.report", "expected at least '1 s'")
        taken[rollout.target] = rollout.key


def _check_conversions(config: Config, platforms: Sequence[str]) -> None:
    for conversion in config.conversions:
        _check_platform(config, f"{conversion.key}.platform", conversion.platform, platforms)
        if conversion.source == conversion.target:
            raise config.error(f"{conversion.key}.to", "expected another format than 'from'")
        _check_every(config, conversion)


def _check_trainer(config: Config) -> None:
    table = config.trainer
    if table is None:
        return
    if table.idle_exit is not None and table.idle_exit <= 0:
        raise config.error("trainer.idle_exit", "expected more than 0 s; without this key the node waits for ever")
    if table.slot is not None and not table.slot.parent.is_dir():
        raise config.error("trainer.slot", f"there is no folder {table.slot.parent} for this file")


def _check_every(config: Config, table: RolloutTable | ConversionTable) -> None:
    if table.every < MIN_EVERY_S:
        raise config.error(f"{table.key}.every", "expected at least '100 ms'")


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
        key = f"server.allowed_hosts[{index}]"
        if name == "*":
            if table.token is None and not table.allow_anonymous:
                what = "'*' opens the node to every page in a browser that reaches it"
                raise config.error(key, f"{what}, so expected a 'token' too, or 'allow_anonymous = true'")
        elif not _HOST.fullmatch(name) and not _is_address(name):
            raise config.error(key, "expected a host name without scheme, port or '*', or '*' alone for any name")
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
