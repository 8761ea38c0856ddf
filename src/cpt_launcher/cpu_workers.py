"""Kept for YAMLs and scripts that name it: `python -m cpt_launcher.cpu_workers train FILE`."""

from cpt_launcher.stack.cpu_workers import main

if __name__ == "__main__":
    main()
