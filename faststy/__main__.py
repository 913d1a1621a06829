"""``python -m faststy``: the same as the ``faststy`` command."""

from faststy.cli import main

if __name__ == "__main__":
    main()
