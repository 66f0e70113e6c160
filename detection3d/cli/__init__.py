"""The command-line tools: parse, call, print. `tools/*.py` and the console entry points both run these."""
