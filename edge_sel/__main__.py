"""``python -m edge_sel``."""

from edge_sel.cli.main import main

if __name__ == "__main__":
    main()
