"""TLS: certificates and keys of the operator's, and the connection behind a handshake."""
