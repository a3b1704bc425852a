"""What tests need and the gateway does not: real processes, a slow network, a pty with lines."""
