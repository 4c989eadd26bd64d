"""Commands, flags, settings, files and links in the docs exist, and the tutorial's patch works."""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from nanoevolve_jax.configs.base import CONFIRM_SETTINGS, SETTINGS

from nanoevolve_jax.cli import COMMANDS
from nanoevolve_jax.terminal.mistakes import parses

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
    search = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert search.returncode == 0, search.stderr
    with np.load(tmp_path / "run" / "telemetry" / "annealing.npz") as telemetry:
        assert np.ptp(telemetry["weight_norm_ema"]) > 0.1
    record = json.loads((tmp_path / "run" / "archive.jsonl").read_text().splitlines()[0])
    assert record["spec"]["control"]["coefficients"]["weight_norm_ema"] == 0
