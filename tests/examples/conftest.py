"""Where the programs in examples/ are; pytest's `pythonpath` makes them importable."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def examples() -> Path:
    """The folder of the programs."""
    return Path(__file__).parents[2] / "examples"
