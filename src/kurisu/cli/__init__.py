"""The command line: parses, calls one function of the library, prints what it returns.

In: arguments. Out: text or JSON on stdout, notes and progress on stderr, an exit code. `kurisu
--help` loads nothing but Typer: what is heavy is imported inside the commands.
"""
