"""`python -m tests.conformance`: the same as `python tests/conformance/run.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from run import main

sys.exit(main())
