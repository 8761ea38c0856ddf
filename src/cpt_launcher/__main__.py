"""The command `cpt`, which is also ``python -m cpt_launcher``."""

import sys


def main() -> None:
    """Run the command line. Ctrl-C ends it quietly while it is still being imported, too."""
    try:
        from cpt_launcher.cli import app

        app.main()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
