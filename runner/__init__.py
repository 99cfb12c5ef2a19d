"""runner: declare a fine-tuning job once; check, render, run, guard and report it.

Imports nothing but the standard library, so that `import runner` costs nothing.
"""

__version__ = "0.1.0"
