"""Performance, as ratios of two things measured alternately in one run.

In: the embedded PostgreSQL, and a TimescaleDB server where one is named. Out: a table (or JSON)
of ratios with their spread. A time alone says little about a machine that does other things too.
Run with `make bench`, or `python -m bench --help`.
"""
