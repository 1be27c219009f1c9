"""Pure values and their rules: what a market, timeframe, candle and amount is.

In: text, integers and Decimals. Out: values that hold their invariants, or faults that
name the rule a record breaks. Nothing here does I/O, and nothing here is a float.
"""
