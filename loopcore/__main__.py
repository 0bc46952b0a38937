"""`python -m loopcore`, and where the command `loopcore` begins."""


def main() -> None:
    """Run the command line; who interrupts it while it is being loaded sees no traceback, either."""
    try:
        from loopcore.cli import main as command
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    command()


if __name__ == "__main__":
    main()
