"""Whatever bytes a file holds, its reader gives a sentence or something whole, and takes no memory for a claim."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from python_tests.hostile import READERS, Hostile

EXAMPLES = 12  # of a target in every test run; bench/fuzz.py tries very many


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Hostile:
    return Hostile(tmp_path_factory.mktemp("hostile"))


@st.composite
def changed(draw: st.DrawFn, seed: bytes) -> bytes:
    """Bytes alone, or a valid file with some bytes changed, cut off or put in."""
    if draw(st.integers(0, 5)) == 0:
        return draw(st.binary(max_size=64))
    content = bytearray(seed)
    for _ in range(draw(st.integers(1, 3))):
        first = draw(st.integers(0, max(len(content) - 1, 0)))
        last = min(first + draw(st.sampled_from([0, 1, 1, 2, 8, 200, len(content)])), len(content))
        words = [b"", b"-1", b"1e12", b"null", b"[]", b"{}", b"\xff", b"\0" * 8, b"NaN", b"999999999999", b"../x"]
        content[first:last] = draw(st.sampled_from(words) | st.binary(max_size=8))
    return bytes(content)


@pytest.mark.parametrize("target", READERS)
def test_a_file_that_somebody_made_up_gets_a_sentence(target: str, hostile: Hostile) -> None:
    hostile.read(target, hostile.seeds[target])

    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(changed(hostile.seeds[target]))
    def tried(content: bytes) -> None:
        try:
            hostile.read(target, content)
        except (ValueError, TypeError, FloatingPointError) as error:
            said.append(str(error))

    said: list[str] = []
    tried()
    assert all(said), "a sentence each"


def claimed(header: dict[str, object], data: bytes = b"") -> bytes:
    """A safetensors file with such a header."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


CLAIMS = {
    "checkpoint": [
        claimed({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}),
        claimed({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}),
        claimed({"../../a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4),
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 90_000_000) + b"{" * 100,
    ],
    "config": [
        b"dim: 1000000000000\n",
        b"blocks: 1e12\n",
        b"a: &a [x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a]\nc: [*b, *b, *b, *b, *b, *b, *b, *b]\n",
        b"dim: " + b"9" * 5000 + b"\n",
        b"- " * 100_000,
        b"dim: !!python/object/apply:os.system [ls]\n",
    ],
    "manifest": [
        json.dumps({"files": {"../../../etc/passwd": {"bytes": 1, "sha256": "0"}}, "sha256": "0"}).encode(),
        b"[" * 1_000_000,
    ],
}
LIMITED = """
import sys
from pathlib import Path
from python_tests.hostile import READERS, Hostile
import resource
hostile = Hostile.__new__(Hostile)
hostile.place = Path(sys.argv[1])
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20), -1))
for path in sorted(hostile.place.glob("*.made_up")):
    target = path.stem.partition("-")[0]
    try:
        hostile.read(target, path.read_bytes())
    except (ValueError, TypeError) as error:
        print(str(error)[:200].replace("\\n", " "), flush=True)
    else:
        print("taken", path, flush=True)
"""


@pytest.mark.slow
def test_a_file_that_claims_to_be_huge_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    """In a process that may take 200 MB more than it has when it begins."""
    for target, claims in CLAIMS.items():
        for number, content in enumerate(claims):
            (tmp_path / f"{target}-{number}.made_up").write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == sum(map(len, CLAIMS.values()))
    assert all(": expected " in line for line in lines), done.stdout
