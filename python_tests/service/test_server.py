"""`solid-ext serve` as a process: how it begins, what it refuses, and how it ends."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from solid_ext.cli import main

ROOT = Path(__file__).parents[2]


@contextmanager
def started(folder: Path, *flags: str, token: str | None = None) -> Iterator[tuple[subprocess.Popen[str], int]]:
    environment = {**os.environ, "COLUMNS": "500", "PYTHONUNBUFFERED": "1"}
    if token is not None:
        environment["SOLID_EXT_TOKEN"] = token
    command = [sys.executable, "-m", "solid_ext.cli", "serve", "--run", str(folder), "--port", "0", *flags]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        found = re.search(r"at http://127\.0\.0\.1:(\d+)", process.stdout.readline())
        assert found is not None
        yield process, int(found[1])
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def get(port: int, path: str, headers: dict[str, str] | None = None) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", path, headers=headers or {})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


def test_what_has_begun_is_answered_before_the_service_ends(folder: Path) -> None:
    with started(folder) as (process, port):
        assert get(port, "/health") == 200
        # A request whose body is on its way when the service is told to stop.
        slow = socket.create_connection(("127.0.0.1", port), timeout=20)
        body = b'{"history": [10, 20], "k": 3}'
        head = "POST /recommend HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
        slow.sendall(f"{head}{len(body)}\r\n\r\n".encode() + body[:5])
        assert get(port, "/health") == 200  # by now the other one is being read
        process.send_signal(signal.SIGTERM)
        later = threading.Timer(0.3, slow.sendall, [body[5:]])
        later.start()
        answer = b""
        while part := slow.recv(65536):
            answer += part
        later.join()
        slow.close()
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert answer.count(b'"score"') == 3
        assert process.wait(20) in (0, -signal.SIGTERM)
        with pytest.raises(OSError, match="refused"):
            get(port, "/health")


def test_a_large_head_gets_the_sentence_from_the_process_too(folder: Path) -> None:
    with started(folder) as (_, port):
        for size, status in ((30_000, 200), (33_000, 431), (60_000, 431)):
            assert get(port, "/health", {"X-Large": "x" * size}) == status
        assert get(port, "/health") == 200


def test_the_token_comes_from_the_environment_or_a_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("of-file\n")
    with started(folder, "--token-file", str(tmp_path / "token"), token="of-environment") as (_, port):
        assert get(port, "/items") == 401
        assert get(port, "/items", {"Authorization": "Bearer of-environment"}) == 401
        assert get(port, "/items", {"Authorization": "Bearer of-file"}) == 200
        assert get(port, "/health", {"Host": "evil.example"}) == 421


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["serve", *arguments])
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return printed.err


def test_bad_flags_get_one_sentence(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"serve: expected an address to listen at, got 127.0.0.1:{port} (" in refused(
            capsys, "--run", str(folder), "--port", port
        )
    assert "expected a port in 0 .. 65535, got 70000" in refused(capsys, "--run", str(folder), "--port", "70000")
    assert "expected an address to listen at, got nowhere.invalid:0" in refused(
        capsys, "--run", str(folder), "--host", "nowhere.invalid", "--port", "0"
    )
    assert "serve: expected threads of at least 1, got 0" in refused(capsys, "--run", str(folder), "--threads", "0")
    assert "load: expected a folder with model.safetensors" in refused(
        capsys, "--run", str(tmp_path / "none"), "--port", "0"
    )
    (tmp_path / "token").write_text("two words")
    assert "serve: expected a token of printable ASCII characters in " in refused(
        capsys, "--run", str(folder), "--token-file", str(tmp_path / "token")
    )
    assert "serve: expected a file with the token, got nosuchtoken (No such file or directory)" in refused(
        capsys, "--run", str(folder), "--token-file", "nosuchtoken"
    )
    for content, sentence in ((b"\xff\xfe", "a token in UTF-8 in "), (b"\n", "of printable ASCII characters in ")):
        (tmp_path / "token").write_bytes(content)
        assert sentence in refused(capsys, "--run", str(folder), "--token-file", str(tmp_path / "token"))
    monkeypatch.setenv("SOLID_EXT_TOKEN", "")
    assert "in SOLID_EXT_TOKEN, got 0 characters" in refused(capsys, "--run", str(folder))


def test_without_its_packages_it_says_how_to_get_them(folder: Path) -> None:
    code = f"""
import sys
sys.modules["fastapi"] = None
from solid_ext.cli import main
main(["serve", "--run", {str(folder)!r}])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "serve: expected the package fastapi (pip install 'solid_ext[serve]'), found none" in done.stderr
    assert done.stderr.count("\n") == 1
