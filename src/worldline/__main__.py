"""`python -m worldline`, the same as the command `worldline`."""

from worldline.cli.main import main

if __name__ == "__main__":
    main()
