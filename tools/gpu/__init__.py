"""The parts of ``tools/gpu_suite.py``. edge-sel need not be installed: it is that of this checkout."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
