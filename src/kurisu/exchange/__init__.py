"""Exchanges: the port that ingest and runners talk to, and the CCXT adapter behind it.

In: an exchange's name and settings, a market, a range of time. Out: exact rows (text or Decimal,
never a float), markets with ticks and limits, the exchange's own clock, and errors of
`kurisu.errors`. Only `ccxt_adapter` and `exact` know CCXT, and import it when first needed.
"""
