"""`python -m solid_ext.cli` is `solid-ext`."""

from solid_ext.cli import main

main()
