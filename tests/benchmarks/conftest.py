"""The suites are scripts in a folder of their own, not part of the package."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
