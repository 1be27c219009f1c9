"""TimescaleDB Community as a test engine: WebAssembly behind a TCP bridge (Node)."""
