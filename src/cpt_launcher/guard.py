"""Stands between the launcher and the training process, and ends all of that when the launcher is gone."""

from __future__ import annotations

import sys

from cpt_launcher import process

if __name__ == "__main__":
    process.die_like(process.guard(sys.argv[1:]))
