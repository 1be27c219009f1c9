"""Where an account at an exchange and the ledger meet: sending orders, reading accounts, comparing.

In: an account of the store, whose credentials the environment holds; orders to place. Out: orders
and fills in the ledger, each once, whatever happened on the way; reports of what was read and of
what does not agree.
"""
