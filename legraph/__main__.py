"""`python -m legraph`, and `torchrun -m legraph`: the command line."""

from legraph.cli import main

if __name__ == "__main__":
    main()
