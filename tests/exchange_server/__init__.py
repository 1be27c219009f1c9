"""An exchange to test against: real protocols on 127.0.0.1, with faults on demand.

In: candles and trades (real files of ../shared/data, or generated from a seed), a virtual clock
that the test sets, and faults to commit. Out: Binance's spot REST and WebSocket protocol, and
Bitfinex's and Kraken's REST protocols, exact enough that unmodified CCXT works against them; plus
a log of every request and every breach of a rate limit.
"""
