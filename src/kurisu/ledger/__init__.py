"""How fills move orders, positions and balances. Pure: backtest, paper and live share it.

In: orders of ours, and what an exchange says: `OrderUpdate` and `Execution` values in any order,
any number of times. Out: orders, positions, postings and PnL that follow from the executions, and
risk events for what does not add up. No I/O, no clock, no float; the same facts give the same
result, digit for digit, whatever the order in which they came.
"""
