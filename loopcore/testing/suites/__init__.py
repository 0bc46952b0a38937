"""What each kind of driver promises, as tests to inherit."""

import pytest

# Assertions say what was found, as they do in a test's own file.
pytest.register_assert_rewrite(
    *(f"{__name__}.{module}" for module in ("backend", "driver", "http_sink", "selector", "sink", "source"))
)
