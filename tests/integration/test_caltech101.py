"""The lesson's accuracy on Caltech-101, computed from Search replies of the real services."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from workbench.main import main

VARIABLE = "LOOKALIKE_CALTECH101"


@pytest.mark.skipif(VARIABLE not in os.environ, reason=f"{VARIABLE} does not name the folder 101_ObjectCategories")
def test_accuracy_beats_the_lesson(tmp_path: Path) -> None:
    flags = ["--images", os.environ[VARIABLE], "--exclude", "BACKGROUND_Google", "--data-dir", str(tmp_path)]
    model = ["--backbone", "efficientnet_lite0", "--dims", "150"]
    assert main(["evaluate", *flags, *model, "--json", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["images"] == 8677
    assert figures["accuracy"] >= 0.895  # the lesson, with ResNet50: 0.870
