"""What a precision may lose against float32 and still be kept in a bundle."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gate:
    """The bounds: the loss of accuracy in percentage points, where the images have classes, and the mean cosine."""

    max_accuracy_loss: float = 0.3
    min_cosine: float = 0.98

    def objection(self, cosine: float, accuracy_loss: float | None) -> str | None:
        """What speaks against a precision with this mean cosine and this loss in points; None if it may be kept."""
        if cosine < self.min_cosine:
            return f"its mean cosine to float32 is {cosine:.4f}, and {self.min_cosine:g} is the least allowed"
        if accuracy_loss is not None and accuracy_loss > self.max_accuracy_loss:
            return f"it loses {accuracy_loss:.2f} points of accuracy, and {self.max_accuracy_loss:g} are allowed"
        return None
