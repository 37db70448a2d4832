"""A training step of vector-quantize-pytorch's VectorQuantize, in a process of its own.

python peer_vector_quantize.py N K D threads
"""

from __future__ import annotations

import sys

import torch
from peer_answers import answer

try:
    from vector_quantize_pytorch import VectorQuantize
except ImportError as error:
    print(f"missing: {error}", flush=True)
    sys.exit()

rows, codes, dim, threads = map(int, sys.argv[1:5])
torch.set_num_threads(threads)
torch.manual_seed(0)
layer = VectorQuantize(dim=dim, codebook_size=codes, decay=0.99, commitment_weight=0.25)
x, weight = torch.randn(1, rows, dim).requires_grad_(), torch.randn(1, rows, dim)


def step() -> None:
    x.grad = None
    quantized, _, loss = layer(x)
    (loss.sum() + (quantized * weight).sum()).backward()


step()
answer(step)
