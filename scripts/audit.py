"""Asks the OSV database whether what requirements/ pins has known vulnerabilities: `make audit`.

Exit code 1: there are some. Where the database cannot be reached, a line says that nothing was looked up, and the exit
code is 0. What pip-audit itself says is not enough: packages that it could not look up count as sound there. Flags are
handed on to it: `--osv-url` asks a mirror of the database.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from scripts.requirements import FOLDER, SETS

# What pip-audit fails with where it has no answer.
_UNREACHABLE = ("ConnectionError", "Could not connect", "Timeout")


def main() -> int:
    """Runs the command."""
    files = [argument for name in SETS for argument in ("--requirement", FOLDER / f"{name}.txt")]
    command = [Path(sys.executable).with_name("pip-audit"), "--vulnerability-service", "osv", "--format", "json"]
    flags = ["--disable-pip", "--require-hashes", "--progress-spinner", "off", "--timeout", "15"]
    done = subprocess.run([*command, *flags, *files, *sys.argv[1:]], capture_output=True, text=True)
    if not done.stdout.strip():
        reason = (done.stderr.strip().splitlines() or [""])[-1]
        if not any(name in reason for name in _UNREACHABLE):
            sys.exit(f"pip-audit failed with exit code {done.returncode}:\n{done.stderr}")
        print(f"SKIPPED: nothing was audited, the database cannot be reached ({reason})")
        return 0
    text, code = report(json.loads(done.stdout)["dependencies"])
    print(text)
    return code


def report(looked_up: list[dict[str, Any]]) -> tuple[str, int]:
    """The text and the exit code for the `dependencies` of pip-audit's JSON."""
    lines = [
        f"{each['name']} {each['version']}: {found['id']}, fixed in {', '.join(found['fix_versions']) or 'no version'}"
        for each in looked_up
        for found in each.get("vulns", ())
    ]
    vulnerable = len(lines)
    skipped = [f"{each['name']}: not audited, {each['skip_reason']}" for each in looked_up if "skip_reason" in each]
    audited = len(looked_up) - len(skipped)
    if audited == 0:
        return "\n".join([*skipped, "SKIPPED: nothing was audited"]), 0
    summary = f"{audited} of {len(looked_up)} packages audited, {vulnerable} known vulnerabilities"
    return "\n".join([*lines, *skipped, summary]), 1 if vulnerable else 0


if __name__ == "__main__":
    sys.exit(main())
