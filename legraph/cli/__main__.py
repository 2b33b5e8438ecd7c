"""`python -m legraph.cli`: the command line of this very Python."""

from legraph.cli.process import main

if __name__ == "__main__":
    main()
