"""Wrong configurations, each with the line, the key and the words that the sentence about it must have."""

from __future__ import annotations

from typing import NamedTuple

NODE = '[node]\ndata_dir = "data"\n'  # two lines: what follows begins on line 3


PLATFORM = '[[platforms]]\nname = "loop"\ndriver = "nx"\n'  # three lines
ROLLING = f'[backend]\ndriver = "onnx"\n{PLATFORM}[[rollouts]]\nfrom = "loop"\n'  # lines 3 to 9


class Wrong(NamedTuple):
    text: str
    line: int | None
    key: str | None
    words: str


WRONG = {
    "no node table": Wrong("[server]\nport = 1\n", None, "node.data_dir", "this key is missing"),
    "no data_dir": Wrong('[node]\nname = "a"\n', 1, "node.data_dir", "this key is missing"),
    "unknown table": Wrong(NODE + "[sever]\nport = 1\n", 3, "sever", "did you mean 'server'"),
    "unknown key": Wrong(NODE + "[server]\nprot = 1\n", 4, "server.prot", "did you mean 'port'"),
    "unknown key of a node": Wrong('[node]\ndata_dri = "x"\n', 2, "node.data_dri", "did you mean 'data_dir'"),
    "wrong type": Wrong(NODE + '[server]\nport = "80"\n', 4, "server.port", "expected a whole number, got a string"),
    "text for a list": Wrong(NODE + '[plugins]\nfiles = "a.py"\n', 4, "plugins.files", "expected a list"),
    "port out of range": Wrong(NODE + "[server]\nport = 80000\n", 4, "server.port", "65535"),
    "yes for true": Wrong(
        NODE + '[server]\nallow_anonymous = "yes"\n', 4, "server.allow_anonymous", "expected true or false"
    ),
    "open door": Wrong(NODE + '[server]\n\nhost = "0.0.0.0"\n', 5, "server.host", "expected a 'token'"),
    "open door by name": Wrong(NODE + '[server]\nhost = "gate-3.local"\n', 4, "server.host", "expected a 'token'"),
    "open door by IPv6": Wrong(NODE + '[server]\nhost = "::"\n', 4, "server.host", "expected a 'token'"),
    "empty host": Wrong(NODE + '[server]\nhost = ""\n', 4, "server.host", "expected an address"),
    "empty token": Wrong(NODE + '[server]\ntoken = ""\n', 4, "server.token", "expected a token"),
    "missing secret": Wrong(
        NODE + '[server]\ntoken = { env = "LOOPCORE_NOT_SET" }\n', 4, "server.token", "LOOPCORE_NOT_SET to be set"
    ),
    "missing secret file": Wrong(
        NODE + '[server]\ntoken = { file = "nope" }\n', 4, "server.token", "no such file or directory"
    ),
    "endless secret file": Wrong(
        NODE + '[server]\ntoken = { file = "/dev/zero" }\n', 4, "server.token", "expected a file of at most"
    ),
    "folder for a secret": Wrong(NODE + '[server]\ntoken = { file = "." }\n', 4, "server.token", "expected a file of"),
    "size beyond all numbers": Wrong(
        NODE + f"[outbox]\nmax_bytes = '{'9' * 5000} GB'\n", 4, "outbox.max_bytes", "expected a size such as"
    ),
    "duration beyond all numbers": Wrong(
        NODE + f"[outbox]\nmax_age = '{'9' * 400} d'\n", 4, "outbox.max_age", "expected a duration that ends"
    ),
    "wildcard in a host": Wrong(
        NODE + '[server]\nallowed_hosts = ["*.local"]\n', 4, "server.allowed_hosts[0]", "'*' alone for any name"
    ),
    "open door for any name": Wrong(
        NODE + '[server]\nallowed_hosts = ["*"]\n', 4, "server.allowed_hosts[0]", "expected a 'token' too"
    ),
    "slot in no folder": Wrong(
        NODE + '[trainer]\ndriver = "command"\nslot = "nowhere/slot"\n', 5, "trainer.slot", "there is no folder"
    ),
    "idle for no time": Wrong(
        NODE + '[trainer]\ndriver = "command"\nidle_exit = 0\n', 5, "trainer.idle_exit", "more than 0 s"
    ),
    "batch of nothing": Wrong(NODE + '[trainer]\ndriver = "command"\nbatch = 0\n', 5, "trainer.batch", "expected"),
    "two backends": Wrong(
        NODE + '[[backend]]\ndriver = "onnx"\n[[backend]]\ndriver = "onnx"\n', 5, "backend[1]", "expected one table"
    ),
    "a list of one server": Wrong(NODE + "[[server]]\nport = 1\n", 3, "server[0]", "expected one table [server]"),
    "the same table twice": Wrong(NODE + "[server]\n[server]\n", 4, None, "[server] stands here a second time"),
    "the same key twice": Wrong(NODE + "[server]\nport = 1\nport = 2\n", 5, None, "a second time"),
    "single brackets": Wrong(NODE + '[sinks]\ndriver = "folder"\n', 3, "sinks", "expected [[sinks]]"),
    "no driver": Wrong(NODE + "[[sinks]]\n", 3, "sinks[0].driver", "this key is missing"),
    "driver misspelt": Wrong(NODE + '[[sinks]]\ndrivr = "folder"\n', 4, "sinks[0].drivr", "did you mean 'driver'"),
    "unknown driver": Wrong(
        NODE + '[[sinks]]\ndriver = "folder"\npath = "a"\n[[sinks]]\ndriver = "foldr"\n',
        7, "sinks[1].driver", "did you mean 'folder'",
    ),
    "unknown option": Wrong(
        NODE + '[[sinks]]\ndriver = "http"\nulr = "http://127.0.0.1"\n', 5, "sinks[0].ulr", "did you mean 'url'"
    ),
    "missing option": Wrong(NODE + '[[sinks]]\ndriver = "http"\n', 3, "sinks[0].url", "this key is missing"),
    "wrong option": Wrong(
        NODE + '[[sinks]]\ndriver = "http"\nurl = "http://127.0.0.1"\ntimeout = "soon"\n',
        6, "sinks[0].timeout", "expected a duration",
    ),
    "refused by the driver itself": Wrong(
        NODE + '[[sinks]]\ndriver = "http"\nurl = "ftp://x"\n', 5, "sinks[0].url", "ftp://x"
    ),
    "core's key misspelt": Wrong(
        NODE + '[[sinks]]\ndriver = "folder"\npath = "a"\nprioritty = 1\n',
        6, "sinks[0].prioritty", "did you mean 'priority'",
    ),
    "inside an inline table": Wrong(
        NODE + '[[sinks]]\ndriver = "folder"\npath = "a"\nwhen = { reason = ["a"] }\n',
        6, "sinks[0].when.reason", "did you mean 'reasons'",
    ),
    "empty when": Wrong(
        NODE + '[[sinks]]\ndriver = "folder"\npath = "a"\n[sinks.when]\nlabels = []\n',
        7, "sinks[0].when.labels", ">= 1",
    ),
    "two sinks of one name": Wrong(
        NODE + '[[sinks]]\ndriver = "folder"\npath = "a"\n[[sinks]]\ndriver = "folder"\npath = "b"\n',
        6, "sinks[1]", "is taken by sinks[0]",
    ),
    "name with a slash": Wrong(
        NODE + '[[sinks]]\ndriver = "folder"\nname = "../x"\n', 5, "sinks[0].name", "expected letters, digits"
    ),
    "like nothing": Wrong(
        NODE + '[[platforms]]\nname = "loop"\ndriver = "nx"\n[[sinks]]\ndriver = "folder"\npath = "a"\nlike = "lop"\n',
        9, "sinks[0].like", "did you mean 'loop'",
    ),
    "rollout from nowhere": Wrong(
        NODE + '[[rollouts]]\nfrom = "loop"\n', 4, "rollouts[0].from", "there is no platform"
    ),
    "rollout with a rule that is none": Wrong(
        NODE + ROLLING + 'gate = { lables = ["a"] }\n', 10, "rollouts[0].gate.lables", "did you mean 'labels'"
    ),
    "rollout without a backend": Wrong(
        NODE + PLATFORM + '[[rollouts]]\nfrom = "loop"\n', 6, "rollouts[0]", "needs a [backend]"
    ),
    "two rollouts to one place": Wrong(
        NODE + ROLLING + '[[rollouts]]\nfrom = "loop"\n', 10, "rollouts[1].to", "by rollouts[0] already"
    ),
    "rollout too often": Wrong(NODE + ROLLING + "every = 0.01\n", 10, "rollouts[0].every", "at least '100 ms'"),
    "rollout in a format that the backend does not run": Wrong(
        NODE + ROLLING + 'format = "eim"\n', 10, "rollouts[0].format", "that the backend runs (onnx"
    ),
    "conversion of nothing": Wrong(
        NODE + PLATFORM + '[[conversions]]\nplatform = "loop"\nfrom = "a"\nto = "a"\n',
        9, "conversions[0].to", "another format than 'from'",
    ),
    "conversion nowhere": Wrong(
        NODE + '[[conversions]]\nplatform = "lop"\nfrom = "a"\nto = "b"\n',
        4, "conversions[0].platform", "there is no platform 'lop'",
    ),
    "conversion that nothing can do": Wrong(
        NODE + PLATFORM + '[[conversions]]\nplatform = "loop"\nfrom = "a"\nto = "b"\n',
        6, "conversions[0]", "no installed converters lead from 'a' to 'b'",
    ),
    "bad choice": Wrong(NODE + '[outbox]\nwhen_full = "rejct"\n', 4, "outbox.when_full", "did you mean 'reject'"),
    "bad size": Wrong(NODE + '[outbox]\nmax_bytes = "20 GBytes"\n', 4, "outbox.max_bytes", "expected a size"),
    "dotted key": Wrong(NODE + "server.prot = 1\n", 3, "node.server", "unknown key"),
    "not TOML": Wrong(NODE + "[server\n", 3, None, "not valid TOML"),
    "no quotes": Wrong(NODE + "[server]\nhost = localhost\n", 4, None, "a text stands in quotes"),
    "a backslash": Wrong('[node]\ndata_dir = "C:\\Users\\me"\n', 2, None, "a path is written with /"),
    "unfinished": Wrong(NODE + 'x = """\n', 4, None, "not valid TOML"),
    "no such plugin file": Wrong(NODE + '[plugins]\nfiles = ["no.py"]\n', 4, "plugins.files[0]", "there is no file"),
    "no such plugin": Wrong(
        NODE + '[plugins]\nenabled = ["loopcore-learninglop"]\n', 4, "plugins.enabled[0]", "did you mean"
    ),
    "a newline in a key": Wrong(NODE + '"a\\nb" = 1\n', 3, None, "unknown key"),
}  # fmt: skip
