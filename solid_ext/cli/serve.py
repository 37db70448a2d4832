"""solid-ext serve: a trained model as a service, with a page."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from solid_ext.cli.terminal import complain, console

TOKEN = "SOLID_EXT_TOKEN"


@dataclass(frozen=True)
class Serve:
    """Serve a trained model over HTTP, with a page to try it.

    Example: solid-ext serve --run runs/first

    Example: solid-ext serve --run runs/first --host 0.0.0.0 --token-file token.txt

    A run that takes the folder's place is loaded and answers from then on; Ctrl-C ends the service when what has begun
    is answered. Needs the extra `serve` (FastAPI and uvicorn).
    """

    run_folder: Annotated[Path, tyro.conf.arg(name="run")]
    """The folder of a run, or of a model that was saved."""
    host: str = "127.0.0.1"
    """Where to listen; this machine alone can call the default."""
    port: int = 8000
    """The port; 0 for a free one."""
    token_file: Path | None = None
    """A file with the token that requests have to bear; without one that of SOLID_EXT_TOKEN, and without that none."""
    threads: int = 1
    """Of torch, beside the thread that reads and writes requests."""

    def run(self) -> None:
        if self.threads < 1:
            raise ValueError(f"serve: expected threads of at least 1, got {self.threads}")
        token = self._token()
        from solid_ext.service import serve

        def started(address: str) -> None:
            console.print(f"serving {self.run_folder} at {address} (Ctrl-C ends)")
            if token is None and self.host not in ("127.0.0.1", "localhost", "::1"):
                complain(f"note: no token, so that whoever reaches {address} may ask (--token-file)")

        serve(self.run_folder, self.host, self.port, token=token, threads=self.threads, on_start=started)

    def _token(self) -> str | None:
        """The token of the file or the environment.

        Raises:
            ValueError: a file that cannot be read, an empty token, or one that no header can have.
        """
        if self.token_file is None:
            where, token = TOKEN, os.environ.get(TOKEN)
            if token is None:
                return None
        else:
            where = str(self.token_file)
            try:
                token = self.token_file.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"serve: expected a token in UTF-8 in {where}, got other bytes") from error
            except OSError as error:
                raise ValueError(f"serve: expected a file with the token, got {where} ({error.strerror})") from error
        token = token.strip()
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise ValueError(
                f"serve: expected a token of printable ASCII characters in {where}, got {len(token)} characters"
            )
        return token
