"""The command line. Each verb reads its options, calls one function, and renders what it returns.

Only this package prints, exits, or looks at the environment. Nothing heavy is imported before a verb needs
it: `legraph --help` and `legraph check` load neither numpy nor torch nor transformers.
"""

from legraph.cli.commands import app
from legraph.cli.process import main

__all__ = ["app", "main"]
