"""In: files, exchanges' history and live streams. Out: exact rows for the store, and faults."""
