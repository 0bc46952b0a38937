"""What `loopcore.testing` exports, and what it takes to import it."""

from __future__ import annotations

import subprocess
import sys

from loopcore import testing

WITHOUT_PYTEST = """
import sys
sys.modules["pytest"] = None                    # an import of it is now an ImportError
from loopcore.testing import FixedBackend, LoopbackServer, MemorySink, RecordingService, make_sample
print(make_sample(1).info.id)
"""


def test_names_are_sorted_and_each_is_there() -> None:
    assert testing.__all__ == sorted(testing._HOMES)
    assert all(getattr(testing, name).__name__ == name for name in testing.__all__)


def test_all_but_the_suites_work_without_pytest() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_PYTEST], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == testing.make_sample(1).info.id
