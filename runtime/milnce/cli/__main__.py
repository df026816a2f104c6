"""`python -m milnce.cli` is the `milnce` command."""

from __future__ import annotations

from milnce.cli import main

main()
