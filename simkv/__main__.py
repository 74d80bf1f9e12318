"""``python -m simkv``: the command line without an installed script.  Nothing else is here; see ``cli.py``."""

from simkv.cli import main

if __name__ == "__main__":
    main()
