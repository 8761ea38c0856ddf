"""Stands between the launcher and the training process, and ends all of that when the launcher is gone."""

from __future__ import annotations

import sys

from cpt_launcher import launch

if __name__ == "__main__":
    launch.die_like(launch.guard(sys.argv[1:]))
