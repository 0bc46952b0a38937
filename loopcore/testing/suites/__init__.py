"""What each kind of driver promises, as tests to inherit."""

import pytest

# Assertions say what was found, as they do in a test's own file.
pytest.register_assert_rewrite(
    *(
        f"{__name__}.{module}"
        for module in (
            "annotator",
            "backend",
            "driver",
            "http_sink",
            "platform",
            "selector",
            "sink",
            "source",
            "trainer",
        )
    )
)
