"""torch's sgemm in a process of its own: a contestant whose environment may confine its instructions.

    python peer_sgemm.py SIZE

For every line on its input it multiplies two matrices on one thread and answers with its processor seconds.
"""

from __future__ import annotations

import sys
import time

import torch


def main() -> None:
    from peer_answers import answer  # beside this file, where it is run as a script

    torch.set_num_threads(1)
    matrix = torch.randn(int(sys.argv[1]), int(sys.argv[1]))
    answer(lambda: matrix @ matrix, time.process_time)


if __name__ == "__main__":
    main()
