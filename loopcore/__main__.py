"""`python -m loopcore`."""

from loopcore.cli import main

if __name__ == "__main__":
    main()
