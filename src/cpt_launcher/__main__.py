"""``python -m cpt_launcher`` is ``cpt``."""

from cpt_launcher.cli import main

main()
