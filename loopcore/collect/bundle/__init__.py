"""A bundle: samples in one file, for roads without a network.

It is a plain tar, which any program can list and unpack; written in one go, never compressed, no links, no folders:

```
bundle.json      whose samples these are, and which were asked for (`Head`)
<hash>.json      a sample: what is known of it (`Known`) …
<hash>.jpg       … and its image as it came; and so on for each sample
end.json         how many there are, and one hash over all (`End`)
```
`<hash>` is the SHA-256 of the member's content, so `sha256sum` can check what was unpacked. The hash in `end.json` is a
chain, `h = SHA-256(h + hash of the JSON)` for each sample, begun with the SHA-256 of `bundle.json`: it shows when one
is missing. Without `end.json` a bundle is not whole. While it is being written its name ends in `.part`.

A reader takes nothing but members of exactly this form, whose headers it could have written itself; no name in it ever
becomes a path, and no size is believed that the file does not have.
"""

from loopcore.collect.bundle.layout import Choice, Damage, Head, Mark, Member, admissible
from loopcore.collect.bundle.reader import Reader
from loopcore.collect.bundle.writer import Writer

__all__ = ["Choice", "Damage", "Head", "Mark", "Member", "Reader", "Writer", "admissible"]
