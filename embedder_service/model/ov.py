"""OpenVINO, imported without its telemetry: `from embedder_service.model.ov import openvino`."""

from __future__ import annotations

import sys

# OpenVINO reports its imports and conversions to its maker when it finds this module. A server does not call home.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402

__all__ = ["openvino"]
