"""What leaves Kurisu for people and other programs: files of candles, charts in the terminal.

In: candles as the store reads them. Out: CSV, Parquet, Feather; text. Numbers leave as exactly as
they came, unless float64 is asked for.
"""
