"""`python -m unwait`: the command line."""

from unwait.cli import main

if __name__ == "__main__":
    main()
