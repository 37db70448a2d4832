"""Every file that is read back, with bytes that atheris (libFuzzer) makes of a valid one, for so many seconds a target.

    PYTHONPATH=FOLDER_WITH_ATHERIS python -m bench.fuzz --seconds 60 --json

A reading ends with a sentence (`ValueError`, `TypeError`) or with something whole; another error, a crash, a reading of
more than ten seconds or one that takes more than 2 GB ends the target and is counted as found. Each target is a process
of its own. Python's part of the readers is instrumented, so that inputs which reach new code are changed further.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def fuzz(target: str, seconds: int, place: str) -> None:
    """Fuzz one target in this process, which ends it."""
    import atheris

    with atheris.instrument_imports(include=["solid_ext.files", "solid_ext.config", "solid_ext.train", "yaml", "json"]):
        from python_tests.hostile import Hostile

    hostile = Hostile(Path(place))
    corpus = Path(place) / "corpus"
    corpus.mkdir()
    (corpus / "valid").write_bytes(hostile.seeds[target])

    def one(content: bytes) -> None:
        try:
            hostile.read(target, content)
        except (ValueError, TypeError, FloatingPointError) as error:
            if not str(error):
                raise RuntimeError("a refusal without a sentence") from error

    options = [f"-max_total_time={seconds}", "-rss_limit_mb=2048", "-timeout=10", "-print_final_stats=1", "-seed=1"]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={place}/", str(corpus)], one)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="of each target")
    parser.add_argument("--target", help="in this process, as the others call it")
    parser.add_argument("--place", help="of that process")
    parser.add_argument("--json", action="store_true", help="write bench/results/fuzz.json")
    arguments = parser.parse_args()
    if arguments.target:
        fuzz(arguments.target, arguments.seconds, arguments.place)
        return 0
    from python_tests.hostile import READERS

    rows, start = [], time.perf_counter()
    for target in READERS:
        with tempfile.TemporaryDirectory() as place:
            command = ["--target", target, "--place", place, "--seconds", str(arguments.seconds)]
            done = subprocess.run(
                [sys.executable, "-m", "bench.fuzz", *command], capture_output=True, text=True, errors="replace"
            )
        inputs = re.findall(r"number_of_executed_units: +(\d+)", done.stderr)
        if not inputs:
            print(done.stderr[-3000:])
        rows.append({"target": target, "inputs": int(inputs[-1]) if inputs else 0, "found": int(done.returncode != 0)})
        print("{target:14} {inputs:8,} inputs {found} found".format(**rows[-1]), flush=True)
        if done.returncode:
            print(done.stderr[-3000:])
    if arguments.json:
        found = {
            "rows": rows,
            "seconds_a_target": arguments.seconds,
            "wall_seconds": round(time.perf_counter() - start),
        }
        (RESULTS / "fuzz.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return int(any(row["found"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
