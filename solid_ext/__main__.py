"""`python -m solid_ext` is `solid-ext`, as torchrun starts it: `torchrun --nproc-per-node 2 -m solid_ext train ..`."""

from solid_ext.cli import main

main()
