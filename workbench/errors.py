"""What a user can cause, said in one line."""

from __future__ import annotations


class CommandError(Exception):
    """A command cannot go on. The message says what was wrong, with what value, and what to do."""
