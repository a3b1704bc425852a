"""One entry of the YAML over time: who has its board, who waits, and what the board has said."""
