"""One entry of the configuration: its board, the clients that share it, and its output."""
