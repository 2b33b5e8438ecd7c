"""Writes docs/models.md: tries every family of causal LMs that transformers has, half a minute on a CPU.

Usage: python docs/make_models.py
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.families import FAMILIES  # noqa: E402
from tests.family_trials import table, trial  # noqa: E402

if __name__ == "__main__":
    trials = [(family, trial(family)) for family in FAMILIES if family.is_installed]
    (ROOT / "docs" / "models.md").write_text(table(trials))
