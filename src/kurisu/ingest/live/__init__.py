"""Live streams: connections to exchanges in, stored trades and candles without a hole out.

`stream.py` runs everything. A reader for each connection hands what comes to a follower for each
market, which knows what is whole; the writer stores what the followers give it, of all markets in
one transaction; the refiller asks REST for what a connection missed.
"""
