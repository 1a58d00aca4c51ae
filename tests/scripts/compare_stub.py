"""A Python for compare.sh: what is asked of the project itself is answered; stages leave the files that they would.

Notes each stage's words as a JSON line in $RECORD. Fails at a stage whose words have $FAILING among them, and sleeps at
one that has $SLOW until the file $GO is there. wmdd needs the package $MISSING, and no other method one. With $EXACT
results have the names that validate gives them, of protocols with this behind their names.
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OWN = ("utils.run.cells", "recover.methods", "validate.protocols", "ranking.criteria", "utils.data.datasets")
FILES = {
    "squeeze": ("--output", ""),
    "squeeze.statistics": ("--output", ""),
    "squeeze.barycenters": ("--output", ""),
    "ranking": ("--output-dir", "manifest.json"),
    "recover": ("--syn-dir", "manifest.json"),
    "validate": ("--output-dir", "results.csv"),
    "validate.report.diversity": ("--output-dir", "diversity.csv"),
    "utils.data.prepare": ("--output", "val/made"),
}


def main(words):
    if words[0] == "-c":
        return 0
    module = words[1]
    if module == "benchmarks.estimate":
        print("asked:", *words[2:])
        return 0
    if words[1:3] == ["recover.methods", "--needs"]:
        found = subprocess.check_output([sys.executable, *words], cwd=ROOT, text=True)
        print(
            re.sub("NEEDS_MISSING=.*", f"NEEDS_MISSING={os.environ.get('MISSING', '') * (words[3] == 'wmdd')}", found)
        )
        return 0
    if module in OWN:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, *words])  # in its place, as signals come to it
    with open(os.environ["RECORD"], "a") as file:
        file.write(json.dumps(words[1:]) + "\n")
    if (slow := os.environ.get("SLOW")) and slow in words:
        while not os.path.exists(os.environ["GO"]):
            time.sleep(0.02)
    if (failing := os.environ.get("FAILING")) and failing in words:
        print(f"error: {failing} cannot run here", file=sys.stderr)
        return 2
    if module in FILES:
        flag, name = FILES[module]
        path = Path(words[words.index(flag) + 1]) / name if name else Path(words[words.index(flag) + 1])
    elif module == "validate.report":
        path = Path(words[2]) / "report" / "report.html"
    else:
        return 0
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}" if path.suffix == ".json" else "made")
    if module == "validate":
        names = [words[words.index(flag) + 1] for flag in ("--method", "--student-arch", "--protocol")]
        result = path.parent / "results" / f"{re.sub(r'[^-.0-9A-Z_a-z]', '_', '_'.join(names))}_0.json"
        if "EXACT" in os.environ:
            sys.path.insert(0, str(ROOT))
            from validate.results import path_of  # here, as it takes seconds

            names[2] += os.environ["EXACT"]
            result = path_of(path.parent, {}, dict(zip(("method", "student", "protocol"), names)))
        result.parent.mkdir(exist_ok=True)
        result.write_text("{}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
