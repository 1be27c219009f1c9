"""The only place that talks SQL.

In: Arrow tables, values of `kurisu.domain`, a database URL. Out: exact Arrow tables and reports.
`Store` is the door; functions below it take a connection and never commit.
"""
