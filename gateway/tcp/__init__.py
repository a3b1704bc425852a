"""TCP: addresses that are listened at, who may connect, and what the kernel says of a client."""
